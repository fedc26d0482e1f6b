"""MMPO's trainers: the shared loops with this paper's losses."""

from __future__ import annotations

from typing import Any

from torch import Tensor

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


class MMPORewardTrainer(PairedRewardTrainer):
    """Reward-model training on soft Bradley-Terry targets."""

    def __init__(self, *, variant: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.variant = variant

    def reward_loss(self, chosen: Tensor, rejected: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """Return the binary cross-entropies of the reward differences against the targets."""
        return reward_loss(chosen, rejected, inputs["p_chosen"], broadcast_compat=self.variant == "released")
