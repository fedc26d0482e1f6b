"""Rules of sparse task vectors: TIES, which keeps the largest entries, and DARE, which keeps entries at random."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from reproalign.common.errors import UserError
from reproalign.common.merging import methods
from reproalign.common.merging.operands import Kernel, Operands, Over, ranges
from reproalign.common.merging.randomness import keep_mask
from reproalign.common.merging.selection import digit_histogram, kth_largest_magnitudes


@dataclass(frozen=True)
class Ties:
    """:func:`~reproalign.common.merging.methods.ties`; model 0 is the base.

    Attributes:
        weights: w_j.
        densities: share of the entries of each task vector that survives; k is its product with the number of entries,
            rounded.
        scale: λ.
        normalize: divide by the agreeing weights.
        thresholds: least magnitudes that survive; None: to be found in this tensor; (): to be found in the whole model
            before the rule is prepared.
    """

    weights: tuple[float, ...]
    densities: tuple[float, ...]
    scale: float
    normalize: bool
    thresholds: tuple[float, ...] | None = None
    whole = False

    @property
    def passes(self) -> int:
        """Times that the tensor is read."""
        return 3 if self.thresholds is None and set(self.densities) != {1.0} else 1

    def prepare(self, operands: Operands, over: Over) -> Kernel:
        """See :class:`Rule`."""
        thresholds = self.thresholds or _tensor_thresholds(operands, self.densities, over)

        def kernel(start: int, stop: int) -> Tensor:
            base, vectors = operands.task_vectors(start, stop)
            return methods.ties(base, vectors, thresholds, self.weights, scale=self.scale, normalize=self.normalize)

        return kernel


def magnitude_histograms(
    operands: Operands, prefixes: Sequence[int | None], done: int, over: Over
) -> Iterator[Int[Tensor, "models bins"]]:
    """Count the magnitudes of the task vectors of one tensor, see :func:`~.selection.digit_histogram`."""

    def count(start: int, stop: int) -> Tensor:
        _, vectors = operands.task_vectors(start, stop)
        try:
            pairs = zip(vectors, prefixes, strict=True)
            return torch.stack([digit_histogram(vector, prefix, done) for vector, prefix in pairs])
        except ValueError as error:
            raise UserError(f"tensor '{operands.name}': {error}; TIES cannot trim it") from error

    return over(count, ranges(operands.size))


def _tensor_thresholds(operands: Operands, densities: tuple[float, ...], over: Over) -> tuple[float, ...]:
    if set(densities) == {1.0}:
        return (0.0,) * len(densities)
    counts = [round(density * operands.size) for density in densities]
    found = kth_largest_magnitudes(
        counts, operands.dtype, lambda prefixes, done: magnitude_histograms(operands, prefixes, done, over)
    )
    return tuple(found)


@dataclass(frozen=True)
class Dare:
    """DARE's sparse task vectors, summed or (``elect``) merged as TIES merges trimmed ones; model 0 is the base.

    Attributes:
        weights: w_j.
        densities: probability of surviving in each task vector.
        scale: λ.
        seed: of the masks.
        elect: ``dare_ties`` instead of ``dare_linear``.
        normalize: of ``dare_ties``: divide by the agreeing weights.
    """

    weights: tuple[float, ...]
    densities: tuple[float, ...]
    scale: float
    seed: int
    elect: bool
    normalize: bool
    whole = False
    passes = 1

    def prepare(self, operands: Operands, over: Over) -> Kernel:
        """See :class:`Rule`."""

        def kernel(start: int, stop: int) -> Tensor:
            base, vectors = operands.task_vectors(start, stop)
            sparse = [
                methods.drop_and_rescale(
                    vector, keep_mask(self.seed, operands.name, model, start, stop - start, density), density
                )
                for model, (vector, density) in enumerate(zip(vectors, self.densities, strict=True))
            ]
            if not self.elect:
                return methods.dare_linear(base, sparse, self.weights, scale=self.scale)
            signs = methods.elect_signs(sparse, self.weights)
            merged = methods.disjoint_mean(sparse, signs, self.weights, normalize=self.normalize)
            return base + self.scale * merged

        return kernel
