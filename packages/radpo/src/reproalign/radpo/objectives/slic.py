"""SLiC: a hinge on log-probs, with a likelihood term in place of a reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from reproalign.common.lazy import torch
from reproalign.common.options import option
from reproalign.common.training.objective import Needs, Pairs, PairScores
from reproalign.radpo.objectives.base import RadpoObjective

__all__ = ["SLiC"]


@dataclass(frozen=True)
class SLiC(RadpoObjective):
    """SLiC (Zhao et al., 2023): max(0, β - P_w + P_l) - λ P_w with P = log π(y|x) (R9); rewards P.

    Takes log-probs per token (0 where masked) or their sums: the release logs its rewards per token.
    """

    name: ClassVar[str] = "slic"
    kind: ClassVar[str] = "paired"
    reward_scale: ClassVar[float] = 1.0  # β is no temperature
    needs = Needs("pairs", reference="none")

    beta: float = option(1.0, above=0, unit="nats", help="margin by which the chosen response is to be likelier")
    lambda_coef: float = option(0.1, at_least=0, help="weight of the likelihood term")

    def __call__(self, batch: Pairs) -> PairScores:
        """Return (R9)."""
        chosen, rejected = (torch.einsum("p...->p", side.logps) for side in (batch.chosen, batch.rejected))
        losses = torch.relu(self.beta - chosen + rejected) - self.lambda_coef * chosen
        return PairScores(losses, batch.chosen.logps.detach(), batch.rejected.logps.detach())
