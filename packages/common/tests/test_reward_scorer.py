"""Scores do not depend on the company they are computed in, and only reward models give them."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from reproalign.common.config.model import ModelConfig
from reproalign.common.errors import UserError
from reproalign.common.models.tiny_tokenizers import tiny_tokenizer
from reproalign.common.reward.pooling import BY_MASK
from reproalign.common.reward.rules import CLASSIFIER, RewardRules
from reproalign.common.reward.scorer import RewardScorer, check_finite
from reproalign.common.testing.tiny import tiny_reward_model

DIALOGUES = [
    [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "one, two " * length}]
    for length in (3, 1, 9, 2, 5, 7, 4)
]


@pytest.fixture
def config(tmp_path: Path) -> ModelConfig:
    tiny_reward_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    return ModelConfig(name=str(tmp_path))


TOLERANCE = 1e-5  # of a reward in float32, absolute: padded rows are summed in another order
EVERY_POOLING = [
    *(RewardRules(pooling, padding_side=side) for pooling in BY_MASK for side in ("right", "left")),
    *(RewardRules(pooling, "released") for pooling in BY_MASK),
    RewardRules("last_not_pad"),
    RewardRules("last_not_pad", padding_side="left"),
    RewardRules("first_pad"),
    CLASSIFIER,
]


@pytest.mark.parametrize("rules", EVERY_POOLING, ids=lambda r: f"{r.pooling}-{r.variant}-{r.padding_side}-{r.layout}")
def test_rewards_do_not_depend_on_the_batches(config, rules) -> None:
    """Neither on its size nor on what the row is padded to, for rows of seven lengths."""
    scorer = RewardScorer(config, rules, batch_size=1)
    alone = scorer(DIALOGUES)
    for scorer.batch_size in (2, 3, 7):
        assert scorer(DIALOGUES) == pytest.approx(alone, abs=TOLERANCE)
        assert scorer(DIALOGUES[::-1]) == pytest.approx(alone[::-1], abs=TOLERANCE)


def test_a_language_model_gives_no_rewards() -> None:
    with pytest.raises(UserError, match=re.escape("reward.name=tiny:llama is no reward model with one output")):
        RewardScorer(ModelConfig(name="tiny:llama"), CLASSIFIER, batch_size=1, key="reward.name")


def test_rewards_are_numbers() -> None:
    config = ModelConfig(name="some/model")
    assert check_finite([1.0, -2.0], config) == [1.0, -2.0]
    with pytest.raises(UserError, match="name=some/model gives rewards that are not finite"):
        check_finite([1.0, math.nan], config)
