"""Averaging ratios of parts: the constraint on their mean, the parametrisation that keeps it, and the regulariser.

A ratio multiplies the model before RLHF (pre); what is left multiplies the model after it (post). Everything here is a
pure function of a few numbers, in float64 unless the caller gives another dtype. The paper is arXiv 2309.06256,
Section 6 and Appendix D.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from reproalign.ama.adapt.config import CONSTRAINTS, NORMALISATIONS
from reproalign.common.errors import UserError, choose

REGULARIZERS = ("l1", "l2", "affine")
CODES = {"0.": "l1", "1.": "l2", "2.": "affine"}  # how the released float spells a regulariser: its integer part
MID_CODE = ".2"  # ... and its decimals
MID_SCALE = 25.0
ROUNDING = 1e-12  # a smaller distance from the base is none, whatever its sign


def constraint_weights(layers: Sequence[float | int], constraint: str = "mean") -> Float[Tensor, " groups"]:
    """Return what each group counts for in the mean ratio; the weights sum to one.

    Args:
        layers: number of layers in each group; the head has none.
        constraint: ``mean``: 1/K each, the paper's Ω = {(1/K) Σ α_k = α}; ``layer_mean``: in proportion to the layers,
            so that a head with a ratio of its own is free.

    Raises:
        UserError: for an unknown constraint.
    """
    choose("constraint", constraint, CONSTRAINTS)
    sizes = [1.0 if constraint == "mean" else size for size in layers]
    return torch.tensor(sizes, dtype=torch.float64) / sum(sizes)


def initial_raw(base: float) -> float:
    """Return the raw value that all groups begin with, logit(base).

    Raises:
        UserError: for 0 and 1, whose logit is infinite, and for what lies outside.
    """
    if not 0 < base < 1:
        raise UserError(f"alpha={base} must lie strictly between 0 and 1: at the ends every ratio is the base itself")
    return math.log(base / (1 - base))


def positive(raw: Float[Tensor, "*shape"], epsilon: float) -> Float[Tensor, "*shape"]:
    """Return h(s) = sigmoid(s) + ε, the unnormalised ratio (eq. 11)."""
    return torch.sigmoid(raw) + epsilon


def normalized(
    raw: Float[Tensor, " groups"],
    base: float,
    epsilon: float,
    *,
    weights: Float[Tensor, " groups"] | None = None,
    normalisation: str = "mean",
    of: Float[Tensor, "*shape"] | None = None,
) -> Float[Tensor, "*shape"]:
    """Return ratios with a given mean from raw values, α_g = α · h(s_g) / Σ_j w_j h(s_j) (eq. 11).

    With w_j = 1/K this is α · K · h(s_g) / Σ h: the mean is α whatever the raw values. As printed, eq. 11 lacks
    the factor K (``normalisation=sum``): the ratios then sum to α. Ratios are not clipped, and may exceed 1.

    Args:
        raw: s, one for each group.
        base: α, the mean ratio.
        epsilon: ε >= 0; the larger, the closer the ratios stay to each other.
        weights: what groups count for in the mean; None: 1/K each.
        normalisation: ``mean`` | ``sum``.
        of: raw values to be scaled by the same denominator without being in it (the released head); None: ``raw``.

    Raises:
        UserError: for an unknown normalisation.
    """
    choose("normalisation", normalisation, NORMALISATIONS)
    shares = positive(raw, epsilon)
    total = shares.sum()
    if normalisation == "mean":
        total = total / len(raw) if weights is None else (weights * shares).sum()
    return base * (shares if of is None else positive(of, epsilon)) / total


def reachable(
    base: float, epsilon: float, weights: Float[Tensor, " groups"], normalisation: str = "mean"
) -> list[tuple[float, float]]:
    """Return between which ratios ε lets each group move, when all others are at the opposite end.

    With equal weights: from α · K ε / (ε + (K-1)(1+ε)) to α · K (1+ε) / ((1+ε) + (K-1) ε). The ends are approached
    and not reached. A single group stays at α (at α for ``sum`` as well).
    """
    factor = 1.0 if normalisation == "mean" else 1.0 / len(weights)
    low, high = epsilon, 1 + epsilon
    ranges = []
    for weight in weights.tolist():
        ends = [(here, here * weight + other * (1 - weight)) for here, other in ((low, high), (high, low))]
        if len(weights) == 1:
            ends = [(1.0, 1.0)] * 2
        bottom, top = (base * factor * here / total if total else math.inf for here, total in ends)
        ranges.append((bottom, top))
    return ranges


@dataclass(frozen=True)
class RatioRegularizer:
    """How far ratios have moved from the base, R = Σ_g c_g f(α_g - α) (R5; appendix D.5).

    Attributes:
        kind: ``l1``: f(d) = |d| with f'(0) = 0; ``l2``: d²; ``affine``: 1 + d, which the release knows besides.
        weighting: ``none``: w = 1; ``mid``: w = 25 / (|layer - centre| + 1), so that the middle of the network moves
            least.
        center: the middle layer; None: (L-1)/2 rounded up, which is 13 of 26, as released for any depth.
        head: which layer the head counts as; None: L, which is 26 of 26, as released for any depth.
    """

    kind: str
    weighting: str = "none"
    center: int | None = None
    head: int | None = None

    def __post_init__(self) -> None:
        """Raise UserError for an unknown kind."""
        choose("regularizer", self.kind, REGULARIZERS)

    def __call__(
        self, ratios: Float[Tensor, " groups"], base: float, coefficients: Float[Tensor, " groups"]
    ) -> Float[Tensor, ""]:
        """Return R.

        Args:
            ratios: α_g.
            base: α.
            coefficients: c_g, of :meth:`coefficients`.
        """
        difference = ratios - base
        if self.kind == "l1":
            moved = torch.where(difference.abs() > ROUNDING, difference, 0.0).abs()
        else:
            moved = difference.square() if self.kind == "l2" else difference + 1
        return (coefficients * moved).sum()

    def coefficients(
        self, layers: Sequence[Sequence[int | None]], depth: int, reduction: str = "linear"
    ) -> Float[Tensor, " groups"]:
        """Return c_g, what each group counts for.

        Args:
            layers: of each group, the layer of each of its linear modules, one entry a module; None is the head.
            depth: number of layers L.
            reduction: ``linear``: c_g = Σ w over the group's linear modules, as released; ``group``: their mean, the
                paper's sum over groups.
        """
        sums = [sum(self._weight(layer, depth) for layer in group) for group in layers]
        if reduction == "group":
            sums = [total / max(len(group), 1) for total, group in zip(sums, layers, strict=True)]
        return torch.tensor(sums, dtype=torch.float64)

    def _weight(self, layer: int | None, depth: int) -> float:
        if self.weighting == "none":
            return 1.0
        center = depth // 2 if self.center is None else self.center
        head = depth if self.head is None else self.head
        return MID_SCALE / (abs((head if layer is None else layer) - center) + 1)


def regularizer_from_code(code: float | int | str) -> RatioRegularizer:
    """Return the regulariser that the released ``sum_reg_type`` stands for, with its fixed centre 13 and head 26.

    Raises:
        UserError: for a code that the release cannot evaluate (among them any integer, which has no decimals).
    """
    text = str(code)
    kind = next((kind for prefix, kind in CODES.items() if text.startswith(prefix)), None)
    if kind is None:
        raise UserError(
            f"sum_reg_type={text} means no regulariser: write 0.0 (l1), 1.0 (l2) or 2.0 (affine), with the decimal .2 "
            "to weight the middle layers"
        )
    return RatioRegularizer(kind, "mid" if text.endswith(MID_CODE) else "none", center=13, head=26)
