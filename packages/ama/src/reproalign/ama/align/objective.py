"""The objectives on preference pairs: DPO for a policy, Bradley-Terry for a reward model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from jaxtyping import Float

from reproalign.common.lazy import torch
from reproalign.common.options import option
from reproalign.common.training.objective import Needs, Objective, Pairs, PairScores

if TYPE_CHECKING:
    from reproalign.common.training.reward import RewardPairs


@dataclass(frozen=True)
class DPO(Objective):
    """-log σ(β log(π(w|x)/π_0(w|x)) - β log(π(l|x)/π_0(l|x))) of chosen w, rejected l (R8); rewards β log(π/π_0)."""

    name: ClassVar[str] = "dpo"
    needs = Needs("pairs")

    beta: float = option(0.1, above=0, help="how strongly the policy is held to the reference")

    def __call__(self, batch: Pairs) -> PairScores:
        """Return the Bradley-Terry losses of the rewards."""
        chosen, rejected = self.beta * batch.chosen.log_ratios, self.beta * batch.rejected.log_ratios
        return PairScores(bradley_terry(chosen, rejected), chosen.detach(), rejected.detach())


@dataclass(frozen=True)
class BradleyTerry:
    """-log σ(r(x, chosen) - r(x, rejected)) of a reward model (R6)."""

    def __call__(self, batch: RewardPairs) -> Float[torch.Tensor, " pairs"]:
        """Return the losses of the pairs."""
        return bradley_terry(batch.chosen, batch.rejected)


def bradley_terry(
    chosen: Float[torch.Tensor, " pairs"], rejected: Float[torch.Tensor, " pairs"]
) -> Float[torch.Tensor, " pairs"]:
    """Return -log σ(r_chosen - r_rejected) (R6), in nats."""
    return -torch.nn.functional.logsigmoid(chosen - rejected)
