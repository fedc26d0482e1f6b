"""Rules: which equation makes a tensor, from which models, with which numbers.

A rule is prepared for one tensor, which may take passes over it (norms for SLERP, magnitudes for TIES), and gives a
kernel that computes any slice. The equations are in :mod:`reproalign.common.merging.methods`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reproalign.common.errors import UserError
from reproalign.common.merging import methods
from reproalign.common.merging.operands import Kernel, Operands, Over, ranges


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
