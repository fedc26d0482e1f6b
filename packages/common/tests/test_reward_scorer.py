"""Scores do not depend on the company they are computed in, and only reward models give them."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from reproalign.common.config import ModelConfig
from reproalign.common.errors import UserError
from reproalign.common.models.tiny import tiny_reward_model
from reproalign.common.models.tiny_tokenizers import tiny_tokenizer
from reproalign.common.reward.rules import CLASSIFIER, RewardRules
from reproalign.common.reward.scorer import Scorer, check_finite

DIALOGUES = [
    [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "one, two " * length}]
    for length in (3, 1, 9, 2, 5, 1)
]


@pytest.fixture
def config(tmp_path: Path) -> ModelConfig:
    tiny_reward_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    return ModelConfig(name=str(tmp_path))


@pytest.mark.parametrize(
    "rules", [CLASSIFIER, RewardRules(), RewardRules("max", padding_side="left"), RewardRules("average", "released")]
)
def test_rewards_do_not_depend_on_the_batches(config, rules) -> None:
    alone = [Scorer(config, rules, batch_size=1)([dialogue])[0] for dialogue in DIALOGUES]
    for size in (2, 3, 6):
        assert Scorer(config, rules, batch_size=size)(DIALOGUES) == pytest.approx(alone, abs=1e-5)
    assert Scorer(config, rules, batch_size=4)(DIALOGUES[::-1]) == pytest.approx(alone[::-1], abs=1e-5)


def test_a_language_model_gives_no_rewards() -> None:
    with pytest.raises(UserError, match=re.escape("reward.name=tiny:llama is no reward model with one output")):
        Scorer(ModelConfig(name="tiny:llama"), CLASSIFIER, batch_size=1, key="reward.name")


def test_rewards_are_numbers() -> None:
    config = ModelConfig(name="some/model")
    assert check_finite([1.0, -2.0], config) == [1.0, -2.0]
    with pytest.raises(UserError, match="name=some/model gives rewards that are not finite"):
        check_finite([1.0, math.nan], config)
