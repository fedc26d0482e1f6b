"""Rewards of responses under the reward model of the run."""

from __future__ import annotations

from collections.abc import Sequence

from reproalign.ama.align.ppo_config import PPOConfig
from reproalign.common.config.model import LoadedRewardModelConfig
from reproalign.common.data.records import Message
from reproalign.common.reward.rules import RewardRules, scoring_rules, told_rules
from reproalign.common.reward.scorer import RewardScorer, check_finite


class PromptRewards:
    """The loaded reward model, called with indices of prompts and the responses to them.

    Args:
        config: of the run.
        prompts: messages of every prompt.

    Raises:
        UserError: for weights that are no reward model.
    """

    def __init__(self, config: PPOConfig, prompts: Sequence[list[Message]]) -> None:
        self.model, self.prompts = reward_model(config), prompts
        self.scorer = RewardScorer(self.model, reading(config), batch_size=config.scoring.batch_size, key="reward")

    def __call__(self, answers: Sequence[tuple[int, str]]) -> list[float]:
        """Return the rewards, in order; none of none, which a process without a share asks for."""
        if not answers:
            return []
        dialogues = [[*self.prompts[prompt], {"role": "assistant", "content": text}] for prompt, text in answers]
        return check_finite(self.scorer(dialogues), self.model, "reward")


def reward_model(config: PPOConfig) -> LoadedRewardModelConfig:
    """Return the options of the reward model as the core has them."""
    return LoadedRewardModelConfig(name=config.reward, revision=config.scoring.revision, dtype=config.scoring.dtype)


def reading(config: PPOConfig) -> RewardRules:
    """Return how the reward model reads a text.

    Raises:
        UserError: for unknown values, or a ``reward.json`` that cannot be read.
    """
    model = reward_model(config)
    return scoring_rules(model, told_rules(model, config.scoring.text, None), "reward")
