"""What a rule works on: one tensor of all models, read slice by slice."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from reproalign.common.merging.checkpoint import TensorSource
from reproalign.common.merging.headers import TensorInfo

# Entries of a slice: small enough for a core's cache, and the unit in which SLERP's inner products are summed, so it
# is no setting: another value would give other last bits.
CHUNK = 1 << 18
Kernel = Callable[[int, int], Tensor]
# Applies a function to (start, stop) ranges, in parallel, and gives the results in order.
Over = Callable[[Callable[[int, int], Any], Iterable[tuple[int, int]]], Iterator[Any]]


@dataclass(frozen=True)
class Operands:
    """One tensor of all models.

    Attributes:
        name: in the output; random choices depend on it.
        sources: a model and the tensor's name there.
        size: leading entries that all models have.
        dtype: that the arithmetic is done in.
    """

    name: str
    sources: tuple[tuple[TensorSource, str], ...]
    size: int
    dtype: torch.dtype

    def info(self, model: int) -> TensorInfo:
        """What the tensor is in a model."""
        source, name = self.sources[model]
        return source.tensors[name]

    def stored(self, model: int, start: int, stop: int) -> Tensor:
        """Read a slice as stored."""
        source, name = self.sources[model]
        return source.read(name, start, stop)

    def read(self, model: int, start: int, stop: int) -> Tensor:
        """Read a slice in the dtype of the arithmetic."""
        return self.stored(model, start, stop).to(self.dtype)

    def task_vectors(self, start: int, stop: int) -> tuple[Tensor, list[Tensor]]:
        """Read a slice of the base (model 0), and of the others less the base."""
        base = self.read(0, start, stop)
        return base, [self.read(model, start, stop).sub_(base) for model in range(1, len(self.sources))]


@runtime_checkable
class Rule(Protocol):
    """How one tensor is made.

    Attributes:
        whole: the kernel needs the whole tensor in one slice.
        passes: times that the tensor is read.
    """

    @property
    def whole(self) -> bool: ...  # noqa: D102

    @property
    def passes(self) -> int: ...  # noqa: D102

    def prepare(self, operands: Operands, over: Over) -> Kernel:
        """Return the function from a range of entries to their merged values."""


def ranges(size: int) -> Iterator[tuple[int, int]]:
    """Cut ``size`` entries into slices."""
    return ((start, min(start + CHUNK, size)) for start in range(0, size, CHUNK))
