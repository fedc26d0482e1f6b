"""What the trainers of preference pairs share: rewards of chosen and rejected, and their metrics."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reproalign.common.training.collecting import CollectingTrainer, MicroBatch


@dataclass(frozen=True)
class PairScores:
    """What a trainer computes of a micro-batch of pairs.

    Attributes:
        losses: to be averaged; not necessarily one per pair.
        chosen: rewards of the chosen responses.
        rejected: rewards of the rejected ones.
        metrics: scalars to log.
        likelihoods: of a policy, the mean log-probabilities per token of chosen and rejected.
    """

    losses: Float[Tensor, " losses"]
    chosen: Float[Tensor, " pairs"]
    rejected: Float[Tensor, " pairs"]
    metrics: dict[str, Tensor] = field(default_factory=dict)
    likelihoods: tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]] | None = None


class PairTrainer(CollectingTrainer):
    """A trainer on batches of preference pairs; a subclass computes :meth:`pair_scores`.

    Its :meth:`rewards` are columns: those of chosen and of rejected, for a policy also their mean log-probabilities per
    token (pairs, 2 or 4); its targets are the target probabilities (pairs,).
    """

    @abstractmethod
    def pair_scores(self, model: nn.Module, inputs: dict[str, Tensor]) -> PairScores:
        """Compute losses and rewards of one micro-batch."""

    def micro_batch(self, model: nn.Module, inputs: dict[str, Tensor]) -> MicroBatch:
        """Add the metrics of the rewards to :meth:`pair_scores`."""
        scores = self.pair_scores(model, inputs)
        rewards = torch.stack([scores.chosen, scores.rejected, *(scores.likelihoods or ())], dim=-1)
        targets = inputs.get("p_chosen", torch.ones(len(rewards), device=rewards.device))
        metrics = {**reward_metrics(scores.chosen, scores.rejected), **scores.metrics}
        return MicroBatch(scores.losses, metrics, rewards, targets)


def reward_metrics(chosen: Float[Tensor, " pairs"], rejected: Float[Tensor, " pairs"]) -> dict[str, Float[Tensor, ""]]:
    """Return mean rewards, mean margin, and the share of pairs ordered rightly; ties count as wrong."""
    return {
        "rewards/chosen": chosen.mean(),
        "rewards/rejected": rejected.mean(),
        "rewards/margins": (chosen - rejected).mean(),
        "rewards/accuracies": (chosen > rejected).float().mean(),
    }
