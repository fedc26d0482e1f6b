"""TDPO, and what it shares with Ra-DPO: a term T of the whole distribution at every token beside the log-ratio u."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float

from reproalign.common.lazy import torch
from reproalign.common.options import option
from reproalign.common.training.objective import Needs, Pairs, PairScores, Responses
from reproalign.radpo.objectives.base import RadpoObjective

__all__ = ["TDPO"]


@dataclass(frozen=True)
class TokenLevel(RadpoObjective):
    """-log σ(β z) (R6) with z of the first form (R4), or of the second one (R5) where α is given; rewards β (u + T)."""

    kind: ClassVar[str] = "paired"

    beta: float = option(0.1, above=0, help="temperature")
    alpha: float | None = option(
        None, at_least=0, help="weight of the token-level term in the second form", null="the first form"
    )

    def log_ratios(self, responses: Responses) -> Float[torch.Tensor, " responses"]:
        """Log-ratios u of the responses (R1)."""
        return responses.log_ratios

    def term(self, responses: Responses) -> Float[torch.Tensor, " responses"]:
        """The term T of every response: D (R2) or R (R3)."""
        raise NotImplementedError

    def with_term(self, responses: Responses) -> torch.Tensor:
        """The log-ratio with its term, u + T."""
        return self.log_ratios(responses) + self.term(responses)

    def __call__(self, batch: Pairs) -> PairScores:
        """Return (R6) of (R4), or of (R5)."""
        chosen, rejected = self.log_ratios(batch.chosen), self.log_ratios(batch.rejected)
        chosen_term, rejected_term = self.term(batch.chosen), self.term(batch.rejected)
        if self.alpha is None:
            drift = rejected_term - chosen_term
        else:
            drift = self.alpha * (rejected_term - chosen_term.detach())
        losses = -torch.nn.functional.logsigmoid(self.beta * (chosen - rejected - drift))
        rewards = [(self.beta * (u + term).detach()) for u, term in ((chosen, chosen_term), (rejected, rejected_term))]
        return PairScores(losses, rewards[0], rewards[1])


@dataclass(frozen=True)
class TDPO(TokenLevel):
    """TDPO (Zeng et al., 2024): T = D, the sequential KL Σ_t KL(π_ref ‖ π) (R2)."""

    name: ClassVar[str] = "tdpo"
    needs = Needs("pairs", reference="distribution", statistics=("forward_kl",))

    def term(self, responses: Responses) -> Float[torch.Tensor, " responses"]:
        """The sequential KL D (R2)."""
        return responses.statistics["forward_kl"]
