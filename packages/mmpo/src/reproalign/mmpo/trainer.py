"""MMPO's trainers: the shared loops with this paper's losses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from reproalign.common.config import LogprobsConfig
from reproalign.common.evaluation.rewardbench import response_scores
from reproalign.common.files import write_json
from reproalign.common.logprobs.model import install_completion_logps
from reproalign.common.reward.rules import NOTE, RewardRules
from reproalign.common.text.collate import forward_inputs
from reproalign.common.training.pairs import PairScores, PairTrainer
from reproalign.common.training.preference import PairedPreferenceTrainer, PairLogps
from reproalign.common.training.reward import PairedRewardTrainer
from reproalign.mmpo.config import LossConfig
from reproalign.mmpo.loss import pair_loss, reward_loss


class MMPOTrainer(PairedPreferenceTrainer):
    """Policy training on soft Bradley-Terry targets (spec of the loss: :mod:`reproalign.mmpo.loss`)."""

    def __init__(self, *, loss: LossConfig, variant: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.loss_config = loss
        self.variant = variant

    def pair_loss(self, logps: PairLogps, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return MMPO's losses and the implicit rewards β (log π − log π_ref)."""
        per_chosen = logps.tokens_chosen if self.loss_config.average_log_prob else 1.0
        per_rejected = logps.tokens_rejected if self.loss_config.average_log_prob else 1.0
        result = pair_loss(
            self.loss_config,
            self.variant,
            logps.policy_chosen / per_chosen,
            logps.policy_rejected / per_rejected,
            logps.ref_chosen / per_chosen,
            logps.ref_rejected / per_rejected,
            inputs.get("p_chosen"),
        )
        return result.losses, result.chosen_rewards, result.rejected_rewards


class LikelihoodTrainer(PairTrainer):
    """Ranks pairs by a policy's own log-probs, without a reference; for evaluation alone."""

    def __init__(self, *, normalisation: str, logprobs: LogprobsConfig, **kwargs: Any) -> None:
        install_completion_logps(
            kwargs["model"], implementation=logprobs.implementation, chunk_size=logprobs.chunk_size
        )
        super().__init__(**kwargs)
        self.normalisation = normalisation

    def pair_scores(self, model: nn.Module, inputs: dict[str, Tensor]) -> PairScores:
        """Return the scores as rewards, and the cross-entropy per token of chosen as the loss."""
        output = model(**forward_inputs(inputs), use_cache=False)
        chosen, rejected = response_scores(output["per_token"], output["counts"], self.normalisation).chunk(2)
        means = output["means"].chunk(2)
        return PairScores(-means[0], chosen, rejected, likelihoods=means)


class MMPORewardTrainer(PairedRewardTrainer):
    """Reward-model training on soft Bradley-Terry targets."""

    def __init__(self, *, variant: str, rules: RewardRules, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.variant = variant
        self.rules = rules

    def save_state(self, checkpoint: Path) -> None:
        """Write ``reward.json`` into every checkpoint, each of which is a reward model to be scored."""
        if self.is_world_process_zero():
            write_json(checkpoint / NOTE, self.rules.note())

    def reward_loss(self, chosen: Tensor, rejected: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """Return the binary cross-entropies of the reward differences against the targets."""
        compat = self.variant == "released"
        return reward_loss(chosen, rejected, inputs["p_chosen"], margin=inputs.get("margin"), broadcast_compat=compat)
