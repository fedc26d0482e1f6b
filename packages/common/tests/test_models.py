"""Adapters as a start and as an identity: the weights of a folder are base and adapters together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from reproalign.common.config.model import LoraConfig, ModelConfig
from reproalign.common.errors import UserError
from reproalign.common.models.adapters import disable_dropout, dropout_probabilities
from reproalign.common.models.identify import identify_settings, identify_weights
from reproalign.common.models.load import load_causal_lm, load_reward_model, load_tokenizer
from reproalign.common.models.tiny import save_tiny
from reproalign.common.records import fingerprint_folder


def train_adapter(start: Path, folder: Path) -> torch.Tensor:
    """Save an adapter of ``start`` with weights that are not zero; return what it answers."""
    model = load_causal_lm(ModelConfig(name=str(start), dtype="float32", lora=LoraConfig(enabled=True)))
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight.data, std=0.1)
    model.save_pretrained(folder)
    return answer(model.eval())


def load(folder: Path) -> torch.Tensor:
    return answer(load_causal_lm(ModelConfig(name=str(folder), dtype="float32"), trainable=False))


@torch.no_grad()
def answer(model: torch.nn.Module) -> torch.Tensor:
    return model(input_ids=torch.arange(5, 15)[None]).logits


def test_an_adapter_trained_on_an_adapter_keeps_both(tmp_path):
    """The base of the second one is the first one's folder, not the base of that."""
    base, first, second = save_tiny(tmp_path / "base"), tmp_path / "first", tmp_path / "second"
    train_adapter(base, first)
    trained = train_adapter(first, second)
    assert json.loads((second / "adapter_config.json").read_text())["base_model_name_or_path"] == str(first)
    torch.testing.assert_close(load(second), trained)


def test_an_adapter_is_known_by_its_weights_its_settings_and_its_base(tmp_path):
    base, adapter = save_tiny(tmp_path / "base"), tmp_path / "adapter"
    train_adapter(base, adapter)
    known = identify_weights(str(adapter), None)
    assert known == identify_weights(str(adapter), None)
    path = adapter / "adapter_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "target_modules": settings["target_modules"][::-1]}))
    assert identify_weights(str(adapter), None) == known  # PEFT's order of a set
    path.write_text(json.dumps({**settings, "lora_alpha": 1}))
    assert identify_weights(str(adapter), None) != known
    path.write_text(json.dumps(settings))
    save_tiny(base, seed=1)
    assert identify_weights(str(adapter), None) != known
    assert identify_weights(str(base), None) == fingerprint_folder(base)
    path.write_text(json.dumps({**settings, "base_model_name_or_path": "/gone"}))
    with pytest.raises(UserError, match=r"base_model_name_or_path of the adapter in .*: no such folder"):
        identify_weights(str(adapter), None)


def test_settings_are_those_of_the_folder_or_of_an_adapters_base(tmp_path):
    base, adapter = save_tiny(tmp_path / "base"), tmp_path / "adapter"
    train_adapter(base, adapter)
    known = identify_settings(str(base))
    assert known == identify_settings(str(adapter)) != identify_settings(str(save_tiny(tmp_path / "x", "gpt_neox")))
    path = base / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "transformers_version": "9", "_name_or_path": "elsewhere"}))
    assert identify_settings(str(base)) == known
    path.write_text(json.dumps({**config, "rope_parameters": {"rope_type": "linear", "factor": 2.0}}))
    assert identify_settings(str(base)) != known
    path.write_text(json.dumps(config))
    (base / "generation_config.json").write_text(json.dumps({"repetition_penalty": 1.2}))
    assert identify_settings(str(base)) != known
    assert identify_settings("org/model") is None


def dropping_model(folder: Path) -> str:
    """GPT-2 with the dropout of its release (0.1) and attention that has a probability in its configuration."""
    from transformers import GPT2Config, GPT2LMHeadModel

    GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=32, n_embd=16, n_layer=1, n_head=2)).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("option", "default", "lora", "expected"),
    [
        (None, "all", False, [0.1]),
        (None, "all", True, [0.1, 0.3]),
        (None, "adapters", True, [0.3]),
        (None, "none", True, []),
        (None, "none", False, []),
        (True, "none", True, [0.1, 0.3]),
        (False, "all", True, []),
        (False, "all", False, []),
    ],
)
def test_the_dropout_of_a_policy_is_what_the_option_says_or_else_the_verb(tmp_path, option, default, lora, expected):
    config = ModelConfig(
        name=dropping_model(tmp_path), dropout=option, lora=LoraConfig(enabled=lora, dropout=0.3, r=2, alpha=2)
    )
    model = load_causal_lm(config, dropout=default)
    assert dropout_probabilities(model) == expected
    assert model.training


@pytest.mark.parametrize(("option", "expected"), [(None, [0.1, 0.3]), (True, [0.1, 0.3]), (False, [])])
def test_a_reward_model_keeps_its_dropout_unless_told(tmp_path, option, expected):
    config = ModelConfig(name=dropping_model(tmp_path), dropout=option, lora=LoraConfig(enabled=True, dropout=0.3))
    tokenizer = load_tokenizer(ModelConfig(name="tiny:llama"))
    assert dropout_probabilities(load_reward_model(config, tokenizer)) == expected


def test_attention_that_reads_its_probability_from_an_attribute_is_switched_off_too(tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(save_tiny(tmp_path / "tiny"))
    config.attention_dropout = 0.2
    model = AutoModelForCausalLM.from_config(config)
    assert dropout_probabilities(model) == [0.2]
    disable_dropout(model)
    assert dropout_probabilities(model) == []


def test_keys_of_dropout_that_come_to_nothing_are_warned_of(caplog):
    adapters = LoraConfig(enabled=True, dropout=0.3)
    load_causal_lm(ModelConfig(name="tiny:llama", lora=adapters), dropout="none")
    assert "model.lora.dropout=0.3 has no effect" in caplog.text
    load_causal_lm(ModelConfig(name="tiny:llama", dropout=True))
    assert "model.dropout=true has no effect: 'tiny:llama' has no dropout" in caplog.text
