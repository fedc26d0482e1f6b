"""KTO, on single responses that are desirable or not, and KTO with the reference point 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float

from reproalign.common.lazy import torch
from reproalign.common.options import option
from reproalign.common.training.objective import Examples, ExampleScores, Needs
from reproalign.radpo.objectives.base import RadpoObjective

__all__ = ["KTO", "KTOZero"]


@dataclass(frozen=True)
class KTOZero(RadpoObjective):
    """KTO with K = 0: w_d (1 - σ(β u)) for desirable, w_u (1 - σ(-β u)) for undesirable examples (R10); rewards u."""

    name: ClassVar[str] = "kto-zero"
    kind: ClassVar[str] = "unpaired"
    needs = Needs("examples")

    beta: float = option(0.1, above=0, help="temperature")
    desirable_weight: float = option(1.0, at_least=0, help="weight of desirable examples")
    undesirable_weight: float = option(1.0, at_least=0, help="weight of undesirable examples")

    def reference_point(self, batch: Examples) -> Float[torch.Tensor, "..."]:
        """K."""
        return batch.logps.new_zeros(())

    def __call__(self, batch: Examples) -> ExampleScores:
        """Return (R10)."""
        u, desirable = batch.log_ratios, batch.desirable
        sign = desirable.to(u.dtype) * 2 - 1
        weights = torch.full_like(u, self.undesirable_weight).masked_fill(desirable, self.desirable_weight)
        # 1 - σ(x) as σ(-x), which does not round to 0 for large x.
        losses = weights * torch.sigmoid(-self.beta * sign * (u - self.reference_point(batch).detach()))
        return ExampleScores(losses, u.detach())


@dataclass(frozen=True)
class KTO(KTOZero):
    """KTO (Ethayarajh et al., 2024): w_d (1 - σ(β (u - K))) and w_u (1 - σ(β (K - u))) (R10); rewards u.

    K >= 0 estimates the KL from responses to other prompts
    (:func:`~reproalign.common.training.examples.kl_estimate`), which carry no gradient.
    """

    name: ClassVar[str] = "kto"
    kind: ClassVar[str] = "mismatched"
    needs = Needs("examples", mismatched=True)

    tokenwise_kl: bool = option(
        False, help="K of each example: the largest log-ratio of a token (released: tokenwise_KL)"
    )

    def reference_point(self, batch: Examples) -> Float[torch.Tensor, "..."]:
        """K of the batch, or of each example."""
        kl = batch.tokenwise_kl if self.tokenwise_kl else batch.kl
        if kl is None:
            raise ValueError("KTO needs a KL estimate: Examples.kl, or Examples.tokenwise_kl with tokenwise_kl=True")
        return kl
