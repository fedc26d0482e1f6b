"""Rewards of dialogues under a trained reward model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import PartialState

from reproalign.common.data.collate import pad_rows
from reproalign.more.config import RewardModelConfig, TextConfig
from reproalign.more.model import check_trained, load_reward, load_reward_tokenizer, reward_rules
from reproalign.more.sources import Dialogue
from reproalign.more.text import TextEncoder


class Scorer:
    """A loaded reward model, called with dialogues.

    Args:
        config: the weights; how they read a text is as in training where the options leave it open.
        text: layout and lengths.
        variant: ``paper`` or ``released``; None: as in training.
        batch_size: texts per forward.

    Raises:
        UserError: for unusable options or weights.
    """

    def __init__(self, config: RewardModelConfig, text: TextConfig, variant: str | None, *, batch_size: int) -> None:
        rules = reward_rules(config, text, variant)
        check_trained(config)
        tokenizer = load_reward_tokenizer(config)
        self.encoder = TextEncoder(tokenizer, TextConfig(**rules.text()), rules.variant)
        self.side, self.pad, self.batch_size = rules.padding_side, self.encoder.special.pad, batch_size
        model: Any = load_reward(config, tokenizer, rules, self.pad)
        self.model = model.to(PartialState(cpu=not torch.accelerator.is_available()).device).eval()

    @torch.no_grad()
    def __call__(self, dialogues: Sequence[Dialogue]) -> list[float]:
        """Return the reward of every dialogue, in order; those of like length share a forward."""
        rows = self.encoder(dialogues)
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
