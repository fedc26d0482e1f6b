"""Gemma 1 as transformers 4.38 computed it, against a forward written out from its formulas."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import GemmaConfig, GemmaForCausalLM

from reproalign.common.config.launch import LaunchConfig
from reproalign.common.config.model import LoadedModelConfig, ModelConfig, ReferenceConfig
from reproalign.common.errors import UserError
from reproalign.common.generation.dialogues import ask_by
from reproalign.common.generation.samplers import choose_backend
from reproalign.common.models.kind import with_gemma_numerics
from reproalign.common.models.load import load_causal_lm, load_reference, load_reward_model
from reproalign.common.models.tiny_tokenizers import tiny_tokenizer

SHAPE = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8}
IDS = torch.arange(4, 12)[None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("gemma")
    config = GemmaConfig(**SHAPE, num_key_value_heads=1, vocab_size=64, initializer_range=0.6)
    GemmaForCausalLM(config).save_pretrained(path)
    return path


def inner(model, dtype=torch.float32):
    """Embeddings times \u221ahidden, and the feed-forward layer of ones, as the model computes them."""
    layers = model.model if hasattr(model, "model") else model
    return layers.embed_tokens(IDS), layers.layers[0].mlp(torch.ones(1, 1, 24, dtype=dtype))


def test_the_activation_is_exact_and_the_scale_unrounded(folder):
    config = ModelConfig(name=str(folder), dtype="bfloat16", gemma_numerics="transformers-4.38")
    model = load_causal_lm(config)
    embedded, forward = inner(model, torch.bfloat16)
    weight = model.model.embed_tokens.weight
    assert torch.equal(embedded, weight[IDS] * 24**0.5)  # a Python number: float32 inside, rounded once
    mlp = model.model.layers[0].mlp
    ones = torch.ones(1, 1, 24, dtype=torch.bfloat16)
    expected = mlp.down_proj(torch.nn.functional.gelu(mlp.gate_proj(ones)) * mlp.up_proj(ones))
    assert torch.equal(forward, expected)
    now = inner(load_causal_lm(replace(config, gemma_numerics="current")), torch.bfloat16)
    assert not torch.equal(now[0], embedded)
    assert not torch.equal(now[1], forward)


def test_policy_reference_and_reward_model_agree(folder):
    config = ModelConfig(name=str(folder), dtype="float32", gemma_numerics="transformers-4.38")
    policy, reference = load_causal_lm(config), load_reference(config, ReferenceConfig())
    torch.testing.assert_close(policy(IDS).logits, reference(IDS).logits)
    reward = load_reward_model(config, tiny_tokenizer())
    torch.testing.assert_close(inner(reward)[1], inner(policy)[1])
    plain = load_causal_lm(replace(config, gemma_numerics=None))
    assert not torch.allclose(policy(IDS).logits, plain(IDS).logits, atol=1e-5)


def test_the_variant_decides_where_nothing_is_said(folder):
    gemma, llama = ModelConfig(name=str(folder)), ModelConfig(name="tiny:llama")
    assert with_gemma_numerics(gemma, "transformers-4.38").gemma_numerics == "transformers-4.38"
    assert with_gemma_numerics(gemma, None) == gemma
    assert with_gemma_numerics(llama, "transformers-4.38") == llama
    said = replace(gemma, gemma_numerics="current")
    assert with_gemma_numerics(said, "transformers-4.38") == said


def test_who_asks_as_the_authors_did_computes_as_they_did(folder):
    gemma, llama = ModelConfig(name=str(folder)), ModelConfig(name="tiny:llama")
    asked, _ = ask_by("gemma-custom", gemma, None)
    assert asked.gemma_numerics == "transformers-4.38"
    assert ask_by("gemma-custom", llama, None)[0].gemma_numerics is None
    assert ask_by("chat", gemma, None)[0] == gemma
    assert choose_backend("auto", LaunchConfig(), 1, asked) == "transformers"
    with pytest.raises(UserError, match="backend=vllm has a Gemma of its own"):
        choose_backend("vllm", LaunchConfig(), 1, asked)


@pytest.mark.parametrize(("key", "value"), [("attn_implementation", "eager"), ("quantization", "4bit")])
def test_what_vllm_would_not_read_is_sampled_by_transformers(key, value):
    asked = LoadedModelConfig(name="tiny:llama", **{key: value})
    assert choose_backend("auto", LaunchConfig(), 1, asked) == "transformers"
    with pytest.raises(UserError, match=f"of its own, which {key}={value} does not change; set backend=transformers"):
        choose_backend("vllm", LaunchConfig(), 1, asked)


def test_other_models_are_refused():
    llama = ModelConfig(name="tiny:llama", gemma_numerics="transformers-4.38")
    with pytest.raises(UserError, match="is for Gemma 1, which 'tiny:llama' is not"):
        load_causal_lm(llama)
