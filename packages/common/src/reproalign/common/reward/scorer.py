"""Rewards of dialogues under a trained reward model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from reproalign.common.config.model import LoadedModelConfig
from reproalign.common.data.records import Text
from reproalign.common.errors import UserError
from reproalign.common.models.kind import check_reward_model
from reproalign.common.reward.model import load_reward, load_reward_tokenizer
from reproalign.common.reward.reading import Reader
from reproalign.common.reward.rules import RewardRules
from reproalign.common.text.collate import pad_rows


class RewardScorer:
    """A loaded reward model, called with dialogues.

    Args:
        config: the weights, and how they are held.
        rules: how it reads a text (:func:`reproalign.common.reward.rules.scoring_rules`).
        batch_size: texts per forward; in float32 the rewards depend on it by rounding alone.
        key: the option that names the model.

    Raises:
        UserError: for weights that are no reward model, or a tokenizer that does not go with the rules.
    """

    def __init__(
        self, config: LoadedModelConfig, rules: RewardRules, *, batch_size: int, key: str = "model.name"
    ) -> None:
        check_reward_model(config, key)
        tokenizer = load_reward_tokenizer(config)
        self.reader = Reader(tokenizer, rules)
        self.side, self.pad, self.batch_size = rules.padding_side, self.reader.special.pad, batch_size
        model: Any = load_reward(config, tokenizer, rules, self.pad)
        self.model = model.to(PartialState(cpu=not torch.accelerator.is_available()).device).eval()

    @torch.no_grad()
    def __call__(self, dialogues: Sequence[Text]) -> list[float]:
        """Return the reward of every dialogue, in order; those of like length share a forward."""
        rows = self.reader(dialogues)
        rewards = [0.0] * len(rows)
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            ids = pad_rows([rows[index] for index in chosen], self.pad, side=self.side)
            mask = pad_rows([[1] * len(rows[index]) for index in chosen], 0, side=self.side)
            device = self.model.device
            output = self.model(input_ids=ids.to(device), attention_mask=mask.to(device), rewards=True)
            for index, reward in zip(chosen, output["rewards"].tolist(), strict=True):
                rewards[index] = reward
        return rewards


def check_finite(rewards: list[float], config: LoadedModelConfig, key: str = "model.name") -> list[float]:
    """Return ``rewards`` if they are numbers that can be compared.

    Raises:
        UserError: naming the model that gave others.
    """
    if not np.isfinite(rewards).all():
        raise UserError(
            f"{key}={config.name} gives rewards that are not finite; is it a trained reward model, and is the dtype of "
            "its weights wide enough?"
        )
    return rewards
