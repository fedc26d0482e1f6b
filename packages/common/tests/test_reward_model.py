"""Pooling, and the reward model that any sequence classifier becomes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from reproalign.common.config.model import RewardModelConfig
from reproalign.common.errors import UserError
from reproalign.common.models.tiny import TINY_MODELS, save_tiny
from reproalign.common.models.tiny_tokenizers import tiny_tokenizer
from reproalign.common.reward.model import install_rewards, load_reward
from reproalign.common.reward.pooling import BY_MASK, pool, pooled_index
from reproalign.common.reward.released import released_pool
from reproalign.common.reward.rules import RewardRules
from reproalign.common.testing.tiny import tiny_reward_model

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


@pytest.mark.parametrize("pooling", BY_MASK)
def test_pooling_does_not_see_padding(pooling: str) -> None:
    hidden = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    other = torch.where(MASK[:, :, None].bool(), hidden, 1e3)
    assert torch.equal(pool(hidden, MASK, pooling), pool(other, MASK, pooling))


def test_padding_that_is_known_by_its_id() -> None:
    ids = torch.tensor([[5, 6, 7, 8, 2], [9, 2, 10, 2, 2], [2, 2, 2, 2, 2]])
    assert pooled_index(ids, 2, "last_not_pad").tolist() == [3, 2, 0]
    assert pooled_index(ids, 2, "first_pad").tolist() == [3, 0, 0]  # pad = EOS inside the second text ends it
    assert pooled_index(ids[:1], 0, "first_pad").tolist() == [4]


@pytest.mark.parametrize("kind", TINY_MODELS)
def test_last_not_pad_is_the_sequence_classifier_s_own_pooling(kind: str) -> None:
    model = tiny_reward_model(kind)
    model.config.pad_token_id = 2
    ids = torch.tensor([[5, 6, 7, 8, 2], [9, 2, 10, 2, 2], [9, 10, 11, 12, 13]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
    expected = model(input_ids=ids, attention_mask=mask).logits.squeeze(-1)
    install_rewards(model, rules("last_not_pad"), 2)
    torch.testing.assert_close(model(input_ids=ids, attention_mask=mask, rewards=True)["rewards"], expected)


def test_first_pad_reads_what_a_row_cut_before_its_first_pad_would_give() -> None:
    model = tiny_reward_model()
    install_rewards(model, rules("first_pad"), 2)
    ids = torch.tensor([[5, 6, 2, 8, 9], [9, 10, 11, 2, 2]])
    found = model(input_ids=ids, attention_mask=torch.ones_like(ids), rewards=True)["rewards"]
    for row, length in ((0, 2), (1, 3)):
        alone = ids[row : row + 1, :length]
        expected = model(input_ids=alone, attention_mask=torch.ones_like(alone), rewards=True)["rewards"]
        torch.testing.assert_close(found[row : row + 1], expected)


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
@pytest.mark.parametrize("pooling", [*BY_MASK, "last_not_pad"])  # first_pad is for the right side
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


def test_a_classifier_that_is_no_decoder_is_refused(tmp_path: Path) -> None:
    BertForSequenceClassification(
        BertConfig(
            vocab_size=512, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, num_labels=1
        )
    ).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is a BertForSequenceClassification, whose head does not read"):
        load_reward(RewardModelConfig(name=str(tmp_path)), tiny_tokenizer(), rules(), 0)


def test_a_language_model_s_body_is_taken(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "lm")
    config = RewardModelConfig(name=str(folder), dtype="float32")
    model = load_reward(config, tiny_tokenizer(), rules(), 0)
    assert model.score.weight.shape == (1, 32)
    model.save_pretrained(tmp_path / "rm")
    read = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm")
    assert torch.equal(read.score.weight, model.score.weight)
