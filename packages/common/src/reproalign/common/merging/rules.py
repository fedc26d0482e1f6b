"""Rules: which equation makes a tensor, from which models, with which numbers.

A rule is prepared for one tensor, which may take passes over it (norms for SLERP, magnitudes for TIES), and gives a
kernel that computes any slice. The equations are in :mod:`reproalign.common.merging.methods`.
"""

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
class Linear:
    """:func:`~reproalign.common.merging.methods.linear`; models of weight 0 are not read.

    Attributes:
        weights: w_j.
        rounded: :func:`~reproalign.common.merging.methods.linear_rounded` instead.
    """

    weights: tuple[float, ...]
    rounded: bool = False
    whole = False
    passes = 1

    def prepare(self, operands: Operands, over: Over) -> Kernel:
        """See :class:`Rule`."""
        active = [model for model, weight in enumerate(self.weights) if weight != 0]
        if len(active) == 1 and self.weights[active[0]] == 1:
            return lambda start, stop: operands.stored(active[0], start, stop)
        models = active or [0]
        weights = [self.weights[model] for model in models]
        combine = methods.linear_rounded if self.rounded else methods.linear
        return lambda start, stop: combine([operands.read(model, start, stop) for model in models], weights)


@dataclass(frozen=True)
class Slerp:
    """:func:`~reproalign.common.merging.methods.slerp_weights` of two models, the angle being that of whole tensors."""

    t: float
    whole = False
    passes = 2

    def prepare(self, operands: Operands, over: Over) -> Kernel:
        """See :class:`Rule`."""

        def products(start: int, stop: int) -> Tensor:
            first, second = (operands.read(model, start, stop).double() for model in (0, 1))
            return torch.stack([first @ second, first @ first, second @ second])

        sums = torch.zeros(3, dtype=torch.float64)
        for part in over(products, ranges(operands.size)):
            sums += part
        weights = methods.slerp_weights(self.t, float(sums[0]), float(sums[1].sqrt()), float(sums[2].sqrt()))
        return Linear(weights).prepare(operands, over)


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


@dataclass(frozen=True)
class Fisher:
    """:func:`~reproalign.common.merging.methods.fisher`; the second half of the sources are the F_j."""

    weights: tuple[float, ...]
    floor: float
    whole = False
    passes = 1

    def prepare(self, operands: Operands, over: Over) -> Kernel:
        """See :class:`Rule`."""
        count = len(self.weights)

        def kernel(start: int, stop: int) -> Tensor:
            tensors = [operands.read(source, start, stop) for source in range(2 * count)]
            if any(bool((information < 0).any()) for information in tensors[count:]):
                raise UserError(f"statistics: the Fisher information of '{operands.name}' is negative somewhere")
            return methods.fisher(tensors[:count], tensors[count:], self.weights, floor=self.floor)

        return kernel


@dataclass(frozen=True)
class RegMean:
    """:func:`~reproalign.common.merging.methods.regmean`; the second half of the sources are the G_j.

    Attributes:
        weights: w_j.
        off_diagonal: α.
        transposed: matrices are stored as (columns, rows), as GPT-2's are.
    """

    weights: tuple[float, ...]
    off_diagonal: float
    transposed: bool
    whole = True
    passes = 1

    def prepare(self, operands: Operands, over: Over) -> Kernel:
        """See :class:`Rule`."""
        count = len(self.weights)

        def kernel(start: int, stop: int) -> Tensor:
            whole = [
                operands.read(source, 0, operands.info(source).size).view(operands.info(source).shape)
                for source in range(2 * count)
            ]
            matrices = [matrix.mT if self.transposed else matrix for matrix in whole[:count]]
            try:
                merged = methods.regmean(matrices, whole[count:], self.weights, off_diagonal=self.off_diagonal)
            except ValueError as error:
                raise UserError(f"tensor '{operands.name}': {error}") from error
            return (merged.mT if self.transposed else merged).reshape(-1)[start:stop]

        return kernel


@dataclass(frozen=True)
class Same:
    """What cannot be averaged (integers, masks, tensors without statistics): copied, refused where the models differ.

    Attributes:
        reason: what to say then, after "differs between the models and"; None: that its dtype cannot be averaged.
    """

    reason: str | None = None
    whole = False
    passes = 1

    def prepare(self, operands: Operands, over: Over) -> Kernel:
        """See :class:`Rule`."""

        def kernel(start: int, stop: int) -> Tensor:
            first, *others = (operands.stored(model, start, stop) for model in range(len(operands.sources)))
            if any(not torch.equal(first, other) for other in others):
                dtype = str(first.dtype).removeprefix("torch.")
                reason = self.reason or "cannot be averaged; dequantise the models first"
                raise UserError(f"tensor '{operands.name}' ({dtype}) differs between the models and {reason}")
            return first

        return kernel
