"""Ra-DPO: the paper's objective, with a risk measure where TDPO has an expectation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from jaxtyping import Float

from reproalign.common.lazy import torch
from reproalign.common.options import one_of
from reproalign.common.training.objective import Needs, Responses
from reproalign.radpo.objectives.tdpo import TokenLevel
from reproalign.radpo.risk import ReleasedTail, RiskMeasure

__all__ = ["RaDPO"]


@dataclass(frozen=True)
class RaDPO(TokenLevel):
    """Risk-aware DPO: T = R, the sequential risk ratio Σ_t Φ[log π_ref - log π] of a nested risk measure (R3).

    Without ``alpha`` it is Ra-DPO1 (R4), with it Ra-DPO2 (R5); risk-neutral it is TDPO.
    """

    name: ClassVar[str] = "ra-dpo"

    risk: RiskMeasure = one_of(
        "reproalign.radpo.risk:MEASURES", "cvar", released="released_tail", help="risk measure Φ"
    )

    @property
    def needs(self) -> Needs:
        """The risk at every position; of a measure that replaces log-probs, all that it makes of the full logits."""
        statistics = ("forward_kl", "risk")
        if isinstance(self.risk, ReleasedTail) and self.risk.replace_logps:
            from reproalign.radpo.replaced import replaced_statistics

            return Needs(
                "pairs", "distribution", statistics=statistics, of_logits=partial(replaced_statistics, self.risk)
            )
        return Needs("pairs", "distribution", statistics=statistics, measure=self.risk.at(self.beta))

    def log_ratios(self, responses: Responses) -> Float[torch.Tensor, " responses"]:
        """Log-ratios u (R1), or those of what stands for the log-probs (ERRATA Q2)."""
        found = responses.statistics
        if "replaced_logps" in found:
            return found["replaced_logps"] - found["replaced_ref_logps"]
        return responses.log_ratios

    def term(self, responses: Responses) -> Float[torch.Tensor, " responses"]:
        """The sequential risk ratio R (R3)."""
        return responses.statistics["risk"]
