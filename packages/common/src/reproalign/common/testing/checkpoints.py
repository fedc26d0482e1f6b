"""Random checkpoints of several architectures, and what is in a folder, for tests of merging."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PretrainedConfig,
    Qwen2Config,
)

from reproalign.common.models.tiny_tokenizers import tiny_tokenizer

ARCHITECTURES = ("llama", "gpt_neox", "gemma2", "gpt2", "qwen2")


def random_config(kind: str, **overrides: Any) -> PretrainedConfig:
    """Return a configuration of one of :data:`ARCHITECTURES` with four layers; Gemma 2 and GPT-2 tie their heads."""
    shape: dict[str, Any] = {"vocab_size": 512, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    wide = shape | {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
    }
    if kind == "gpt2":
        return GPT2Config(**(shape | {"n_embd": 16, "n_layer": 4, "n_head": 2, "n_positions": 32} | overrides))
    if kind == "gpt_neox":
        return GPTNeoXConfig(**(wide | overrides))
    classes: dict[str, Any] = {"llama": LlamaConfig, "gemma2": Gemma2Config, "qwen2": Qwen2Config}
    config: PretrainedConfig = classes[kind](**(wide | {"num_key_value_heads": 1, "head_dim": 8} | overrides))
    return config


def save_random(
    folder: Path,
    kind: str = "llama",
    *,
    seed: int,
    dtype: torch.dtype = torch.bfloat16,
    shard: str = "5GB",
    tokenizer: bool = True,
    **overrides: Any,
) -> Path:
    """Save a model whose every parameter is drawn from N(0, 1), biases and norms included, with a tokenizer.

    Args:
        folder: to be made.
        kind: one of :data:`ARCHITECTURES`.
        seed: of the weights.
        dtype: of the weights.
        shard: largest file.
        tokenizer: save one beside it.
        **overrides: fields of the configuration.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(random_config(kind, **overrides))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_()
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    if tokenizer:
        tiny_tokenizer().save_pretrained(folder)
    return folder


def save_random_adapter(folder: Path, base: Path, seed: int, *, shared: bool = False, **config: Any) -> Path:
    """Save a LoRA adapter with random factors.

    Args:
        folder: to be made.
        base: model folder.
        seed: of the factors.
        shared: take A of seed 0, as adapters have that began together and froze it.
        **config: of :class:`peft.LoraConfig`; rank 4 on ``q_proj`` and ``down_proj`` if it says nothing else.
    """
    plain: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM", **(plain | config))
    )
    generators = {False: torch.Generator().manual_seed(seed), True: torch.Generator().manual_seed(0)}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                own = generators[shared and "lora_A" in name]
                start = 0.0 if shared and "lora_A" in name else parameter  # PEFT's own A is random
                parameter.copy_(start + 0.3 * torch.randn(parameter.shape, generator=own))
    model.save_pretrained(str(folder))
    return folder


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """Load every tensor of a folder."""
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}
