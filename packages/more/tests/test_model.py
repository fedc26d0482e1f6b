"""Pooling, and the reward model that any sequence classifier becomes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForSequenceClassification

from reproalign.common.errors import UserError
from reproalign.common.models.tiny import TINY_MODELS, save_tiny, tiny_reward_model
from reproalign.common.models.tiny_tokenizers import tiny_tokenizer
from reproalign.more.config import RewardModelConfig, TextConfig
from reproalign.more.model import NOTE, RewardRules, install_rewards, load_reward, reward_note, reward_rules
from reproalign.more.pooling import POOLINGS, pool, released_pool

IDS = torch.tensor([[5, 6, 7, 8, 2], [9, 10, 2, 0, 0], [2, 0, 0, 0, 0]])
MASK = (IDS != 0).long()
LEFT = torch.tensor([[5, 6, 7, 8, 2], [0, 0, 9, 10, 2], [0, 0, 0, 0, 2]])


def rules(pooling: str = "last", variant: str = "paper", padding_side: str = "right") -> RewardRules:
    return RewardRules(pooling, variant, padding_side=padding_side)


def test_pooling_reads_the_states_it_names() -> None:
    hidden = torch.arange(15, dtype=torch.float32).view(3, 5, 1) - 7
    assert pool(hidden, MASK, "eos").flatten().tolist() == [-3, 0, 3]
    assert pool(hidden, MASK, "last").flatten().tolist() == [-4, -1, 3]
    assert pool(hidden, MASK, "average").flatten().tolist() == [-5, -1, 3]
    assert pool(hidden, MASK, "max").flatten().tolist() == [-3, 0, 3]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_does_not_see_padding(pooling: str) -> None:
    hidden = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    other = torch.where(MASK[:, :, None].bool(), hidden, 1e3)
    assert torch.equal(pool(hidden, MASK, pooling), pool(other, MASK, pooling))


def test_the_release_s_quirks() -> None:
    hidden = -torch.ones(3, 5, 1) * torch.arange(1, 6)[:, None]
    options = {"pad_token_id": 0, "padding_side": "right"}
    assert released_pool(hidden, IDS, MASK, "max", **options).flatten().tolist() == [-1, 0, 0]  # ERRATA Q9
    assert released_pool(hidden, IDS, MASK, "last", **options).flatten().tolist() == [-4, -2, -5]  # before the first
    pads_inside = torch.tensor([[5, 0, 6, 7, 2]])
    assert released_pool(hidden[:1], pads_inside, torch.ones(1, 5, dtype=torch.long), "eos", **options).item() == -4


@pytest.mark.parametrize("kind", TINY_MODELS)
def test_eos_pooling_is_the_sequence_classifier_s(kind: str) -> None:
    model = tiny_reward_model(kind)
    expected = model(input_ids=IDS, attention_mask=MASK).logits.squeeze(-1)
    install_rewards(model, rules("eos"), 0)
    found = model(input_ids=IDS, attention_mask=MASK, rewards=True)
    torch.testing.assert_close(found["rewards"], expected)
    torch.testing.assert_close(found["features"] @ model.score.weight[0], found["rewards"])
    assert not found["features"].requires_grad
    torch.testing.assert_close(model(input_ids=IDS, attention_mask=MASK).logits.squeeze(-1), expected)


def test_last_pooling_is_the_sequence_classifier_s_without_eos() -> None:
    model = tiny_reward_model()
    expected = model(input_ids=IDS[:2, :4], attention_mask=MASK[:2, :4] * (IDS[:2, :4] != 2)).logits.squeeze(-1)[:1]
    install_rewards(model, rules("last"), 0)
    found = model(input_ids=IDS[:2], attention_mask=MASK[:2], rewards=True)["rewards"][:1]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", TINY_MODELS)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_rewards_do_not_depend_on_the_padding(kind: str, pooling: str) -> None:
    model = tiny_reward_model(kind)
    install_rewards(model, rules(pooling), 0)
    right = model(input_ids=IDS, attention_mask=MASK, rewards=True)["rewards"]
    install_rewards(model, rules(pooling, padding_side="left"), 0)
    left = model(input_ids=LEFT, attention_mask=(LEFT != 0).long(), rewards=True)["rewards"]
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)
    alone = model(input_ids=IDS[1:2, :3], attention_mask=MASK[1:2, :3], rewards=True)["rewards"]
    torch.testing.assert_close(alone, right[1:2], rtol=1e-4, atol=1e-5)


def test_adapted_models_answer_too() -> None:
    model = get_peft_model(tiny_reward_model(), LoraConfig(r=2, task_type=TaskType.SEQ_CLS))
    install_rewards(model, rules("average"), 0)
    found = model(input_ids=IDS, attention_mask=MASK, rewards=True)
    found["rewards"].sum().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert any("score" in name for name in trained)
    assert any("lora_B" in name for name in trained)


def test_the_head_is_not_rounded_where_it_is_held_in_16_bits() -> None:
    model = tiny_reward_model(dtype=torch.bfloat16)
    install_rewards(model, rules("last"), 0)
    found = model(input_ids=IDS, attention_mask=MASK, rewards=True)
    expected = found["features"].float() @ model.score.weight[0].float()
    assert found["rewards"].dtype == torch.float32
    torch.testing.assert_close(found["rewards"], expected, rtol=1e-6, atol=1e-6)


def test_the_head_is_not_rounded_under_autocast() -> None:
    model = tiny_reward_model()
    install_rewards(model, rules("average"), 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(input_ids=IDS, attention_mask=MASK, rewards=True)
    expected = found["features"].float() @ model.score.weight[0]
    torch.testing.assert_close(found["rewards"], expected, rtol=1e-5, atol=1e-6)


def test_a_language_model_s_body_is_taken(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "lm")
    config = RewardModelConfig(name=str(folder), dtype="float32")
    model = load_reward(config, tiny_tokenizer(), rules(), 0)
    assert model.score.weight.shape == (1, 32)
    model.save_pretrained(tmp_path / "rm")
    read = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")
    assert torch.equal(read.score.weight, model.score.weight)


def test_rules_come_from_the_options_and_then_from_the_training(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "rm")
    untold = RewardModelConfig(name=str(folder))
    assert reward_rules(untold, TextConfig(), "paper") == rules("last")
    trained = RewardRules("max", "released", "chat", 128, "right", "left")
    (folder / NOTE).write_text(json.dumps(reward_note(trained)))
    assert reward_rules(untold, TextConfig(), None) == trained
    told = RewardModelConfig(name=str(folder), pooling="eos")
    text = TextConfig("transcript", 512, "left", "right")
    assert reward_rules(told, text, "paper") == rules("eos")
    (folder / NOTE).write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        reward_rules(untold, TextConfig(), "paper")


@pytest.mark.parametrize(
    ("model", "text", "message"),
    [
        ({"pooling": "mean"}, {}, "model.pooling"),
        ({}, {"layout": "alpaca"}, "transcript"),
        ({}, {"padding_side": "middle"}, "padding_side"),
    ],
)
def test_unknown_rules(model, text, message: str) -> None:
    with pytest.raises(UserError, match=message):
        reward_rules(RewardModelConfig(name="tiny:llama", **model), TextConfig(**text), "paper")
