"""Training a scalar reward model on preference pairs: the loop, without the loss."""

from __future__ import annotations

from abc import abstractmethod

from jaxtyping import Float
from torch import Tensor, nn

from reproalign.common.training.pairs import PairScores, PairTrainer


class PairedRewardTrainer(PairTrainer):
    """Scores chosen and rejected dialogues in one forward of a reward model; a paper adds the loss.

    The model answers ``rewards=True`` (:func:`reproalign.common.reward.model.install_rewards`).
    """

    @abstractmethod
    def reward_loss(
        self,
        chosen: Float[Tensor, " pairs"],
        rejected: Float[Tensor, " pairs"],
        inputs: dict[str, Tensor],
    ) -> Float[Tensor, " losses"]:
        """Return the losses of the pairs from their rewards."""

    def pair_scores(self, model: nn.Module, inputs: dict[str, Tensor]) -> PairScores:
        """Compute the rewards of the micro-batch and hand them to :meth:`reward_loss`."""
        output = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], rewards=True)
        chosen, rejected = output["rewards"].chunk(2)
        return PairScores(self.reward_loss(chosen, rejected, inputs), chosen, rejected)
