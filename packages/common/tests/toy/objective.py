"""The exponential loss on preference pairs, of GPO (arXiv 2402.05749)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from reproalign.common.options import option
from reproalign.common.training.objective import Needs, Objective, Pairs, PairScores


@dataclass(frozen=True)
class Exponential(Objective):
    """L = exp(-β (u_w - u_l)), where u = log π(y|x) - log π_ref(y|x); rewards are β u."""

    name: ClassVar[str] = "exponential"
    needs = Needs("pairs")
    beta: float = option(0.1, above=0, help="how strongly the policy is held to the reference")

    def __call__(self, batch: Pairs) -> PairScores:
        chosen, rejected = self.beta * batch.chosen.log_ratios, self.beta * batch.rejected.log_ratios
        return PairScores((rejected - chosen).exp(), chosen.detach(), rejected.detach())


OBJECTIVES = {"exponential": Exponential}
