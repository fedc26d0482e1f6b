"""From the raw values that the published solver moves to the ratios in force, and gradients back.

``Normalised`` is eq. 11. ``Stale`` is what the release runs: each layer's numerator comes from a bfloat16 copy of
its raw value made before the first step, so that only the common denominator moves. All groups then have one ratio,
which drifts, the head's with them; the gradients still tell the groups apart, and so does the file that is saved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from reproalign.ama.ratios import RatioRegularizer, initial_raw, normalized

Raw = Float[Tensor, " groups"]


@dataclass(frozen=True)
class Pull:
    """The regulariser of a model: its weight, and what each group counts for."""

    regularizer: RatioRegularizer
    weight: float
    coefficients: Raw

    def __call__(self, ratios: Raw, base: float) -> Float[Tensor, ""]:
        """Return weight · R."""
        return self.weight * self.regularizer(ratios, base, self.coefficients.to(ratios.dtype))


@dataclass(frozen=True)
class Normalised:
    """Ratios by eq. 11, in float64: their mean is the base to the last bits, wherever the raw values go.

    Attributes:
        base: α.
        epsilon: ε.
        weights: what each group counts for in the mean.
        normalisation: ``mean`` | ``sum``.
        pull: None: no regulariser.
    """

    base: float
    epsilon: float
    weights: Raw
    normalisation: str
    pull: Pull | None

    @property
    def start(self) -> Raw:
        """Raw values of equal ratios."""
        return torch.full_like(self.weights, initial_raw(self.base))

    def in_force(self, raw: Raw) -> Raw:
        """Return the ratios that the model computes with."""
        return normalized(raw, self.base, self.epsilon, weights=self.weights, normalisation=self.normalisation)

    def saved(self, raw: Raw) -> Raw:
        """Return the ratios that a merge takes, the same."""
        return self.in_force(raw)

    def pull_back(self, raw: Raw, gradient: Raw) -> Raw:
        """Return the gradient in the raw values of the loss with the regulariser."""
        return _pull_back(self.in_force, raw, gradient, self.pull, self.base)

    def penalty(self, raw: Raw) -> float:
        """Return the regulariser's share of the loss."""
        return 0.0 if self.pull is None else float(self.pull(self.in_force(raw), self.base))


@dataclass(frozen=True)
class Stale:
    """Ratios as the release computes them; raw values are float32, the model has the head as one more group.

    Attributes:
        base: α.
        epsilon: ε.
        groups: K.
        pull: of live ratios; None: no regulariser.
        with_base: a scalar of the head's own stands outside the normaliser.
    """

    base: float
    epsilon: float
    groups: int
    pull: Pull | None
    with_base: bool

    @property
    def start(self) -> Raw:
        """Raw values of equal ratios, logit(α) in float32 arithmetic."""
        return torch.logit(torch.tensor(self.base, dtype=torch.float32)).repeat(self.groups)

    def in_force(self, raw: Raw) -> Float[Tensor, " names"]:
        """Return the ratios of the groups, and of the head last: all α K (sigmoid(b) + ε) / S(raw), b the stale copy.

        Sigmoid, sum and product with α are rounded to bfloat16 each, in this order.
        """
        return self._forward(self._copies(), raw)

    def saved(self, raw: Raw) -> Raw:
        """Return the live ratios, which the merge takes."""
        return normalized(raw, self.base, self.epsilon)

    def pull_back(self, raw: Raw, gradient: Float[Tensor, " names"]) -> Raw:
        """Return dL/ds: through the stale copy, which is a rounding of s, and through the live denominator."""
        live = raw.clone().requires_grad_()
        copies = self._copies().requires_grad_()
        ratios = self._forward(copies, live)
        of_copies, of_live = torch.autograd.grad(ratios, [copies, live], gradient.to(ratios.dtype))
        total: Raw = of_live + of_copies[: self.groups].to(of_live.dtype)
        return total if self.pull is None else total + _pull_back(self.saved, raw, None, self.pull, self.base)

    def penalty(self, raw: Raw) -> float:
        """Return the regulariser's share of the loss."""
        return 0.0 if self.pull is None else float(self.pull(self.saved(raw), self.base))

    def _copies(self) -> Float[Tensor, " names"]:
        return torch.full((self.groups + self.with_base,), float(self.start[0]), dtype=torch.bfloat16)

    def _forward(self, copies: Float[Tensor, " names"], raw: Raw) -> Float[Tensor, " names"]:
        total = (torch.sigmoid(raw) + self.epsilon).sum()
        return self.base * (torch.sigmoid(copies) + self.epsilon) / total.expand(len(copies)) * self.groups


Parametrisation = Normalised | Stale


def _pull_back(ratios_of: Callable[[Raw], Raw], raw: Raw, gradient: Raw | None, pull: Pull | None, base: float) -> Raw:
    live = raw.clone().requires_grad_()
    ratios = ratios_of(live)
    total = ratios.new_zeros(()) if gradient is None else (ratios * gradient.to(ratios.dtype)).sum()
    if pull is not None:
        total = total + pull(ratios, base)
    (found,) = torch.autograd.grad(total, live)
    return found
