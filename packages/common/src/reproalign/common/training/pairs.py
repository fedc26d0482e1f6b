"""Training on preference pairs: a policy's log-probs, or a reward model's rewards."""

from __future__ import annotations

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reproalign.common.training.collecting import CollectingTrainer, MicroBatch
from reproalign.common.training.objective import Pairs, PairScores, Responses
from reproalign.common.training.policy import PolicyTrainer, respond

STATISTICS = {"forward_kl": "kl", "risk": "risk_ratio"}  # of responses -> what they are logged as


class ScoredPairsTrainer(CollectingTrainer):
    """What training on pairs comes to for policies and reward models alike: rewards of both sides, and their metrics.

    Its :meth:`rewards` are columns: those of chosen and of rejected, for a policy also their mean log-probabilities per
    token (pairs, 2 or 4); its targets are the target probabilities (pairs,).
    """

    @abstractmethod
    def score(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[PairScores, Responses | None]:
        """Return what the objective makes of a micro-batch, and a policy's responses."""

    def micro_batch(self, model: nn.Module, inputs: dict[str, Tensor]) -> MicroBatch:
        """Add the metrics of the rewards to :meth:`score`."""
        scores, responses = self.score(model, inputs)
        columns = [scores.chosen_rewards, scores.rejected_rewards]
        metrics = {**reward_metrics(*columns), **scores.metrics}
        if responses is not None:
            assert responses.tokens is not None  # respond counts them
            columns += (responses.logps / responses.tokens).chunk(2)
            metrics |= sides("logps", responses.logps, margin=False)
            metrics |= statistics_by_side(responses)
        rewards = torch.stack(columns, dim=-1)
        targets = inputs.get("p_chosen", torch.ones(len(rewards), device=rewards.device))
        return MicroBatch(scores.losses, metrics, rewards, targets)


class PairTrainer(PolicyTrainer, ScoredPairsTrainer):
    """Trains a policy on pairs, in one forward of chosen and rejected and one of the reference.

    Batches come from :class:`reproalign.common.text.collate.PairCollator`: (2·pairs, seq), chosen rows first.
    """

    def score(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[PairScores, Responses]:
        """Compute the log-probs of the micro-batch and hand them to the objective."""
        needs = self.objective.needs
        responses = respond(model, inputs, needs, self.reference, self.logprobs.chunk_size)
        return self.objective(Pairs(*responses.halves(), inputs.get("p_chosen"))), responses


def reward_metrics(
    chosen: Float[Tensor, " pairs"], rejected: Float[Tensor, " pairs"]
) -> dict[str, Float[Tensor, " pairs"]]:
    """Return rewards, margin and whether a pair is ordered rightly, of each pair; ties count as wrong."""
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": chosen - rejected,
        "rewards/accuracies": (chosen > rejected).float(),
    }


def statistics_by_side(responses: Responses) -> dict[str, Float[Tensor, " pairs"]]:
    """Return ``kl/chosen``, ``risk_ratio/chosen`` and so on, of those statistics that there are."""
    known = [(name, label) for name, label in STATISTICS.items() if name in responses.statistics]
    return {side: v for name, label in known for side, v in sides(label, responses.statistics[name]).items()}


def sides(name: str, values: Float[Tensor, " responses"], *, margin: bool = True) -> dict[str, Float[Tensor, " pairs"]]:
    """Return ``name/chosen`` and ``name/rejected`` of a batch of pairs, and with ``margin`` their difference."""
    chosen, rejected = values.detach().chunk(2)
    found = {f"{name}/chosen": chosen, f"{name}/rejected": rejected}
    return found | {f"{name}/margins": chosen - rejected} if margin else found
