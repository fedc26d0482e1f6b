"""A parameter whose ratio is learned, and what is held of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from reproalign.ama.adapt.gradient import Blend
from reproalign.ama.adapt.pair import Tensors

PRE, SECOND = "_pre", "_second"  # what stands beside a parameter in its module: P; D or Q


@dataclass(frozen=True)
class LearnedParameter:
    """A parameter whose ratio is learned; tensors of its shape and dtype stand beside it in its module.

    Attributes:
        tensors: its name and where it is read.
        group: index of its ratio.
        module: that holds it.
        key: its name there.
        linear: whether linear layers alone use it.
        paired: whether P and Q are held.
    """

    tensors: Tensors
    group: int
    module: nn.Module
    key: str
    linear: bool
    paired: bool

    @property
    def first(self) -> nn.Parameter:
        """The network's own parameter: P in a paired linear layer, W otherwise; of a sharded one this shard."""
        return cast(nn.Parameter, getattr(self.module, self.key))

    @property
    def second(self) -> nn.Parameter:
        """Q if paired, D otherwise."""
        return cast(nn.Parameter, getattr(self.module, self.key + SECOND))

    @property
    def pre(self) -> nn.Parameter:
        """P of a paired parameter."""
        return self.first if self.linear else cast(nn.Parameter, getattr(self.module, self.key + PRE))

    def held(self) -> list[nn.Parameter]:
        """Return what is held of it."""
        return [self.first, self.second, *([self.pre] if self.paired and not self.linear else [])]

    def difference(self, blend: Blend) -> Tensor:
        """Return D, made by ``blend`` where it is not held."""
        return blend.difference(self.pre, self.second) if self.paired else self.second
