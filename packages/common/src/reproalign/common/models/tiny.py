"""Causal language models with a few thousand parameters."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    Gemma2Config,
    GPTNeoXConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from reproalign.common.data.cache import cache_folder, fingerprint_tokenizer, make_whole
from reproalign.common.errors import choose
from reproalign.common.files import sha256_json
from reproalign.common.integrity import damage
from reproalign.common.models.quiet import quiet_transformers
from reproalign.common.models.tiny_tokenizers import tiny_tokenizer

FORMAT = 3  # raised when the weights are made in another way, so that cached folders are not taken for new ones
TINY_MODELS = ("llama", "gpt_neox", "gemma")

_SHAPE: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
    "initializer_range": 0.1,  # larger than usual, so that logits differ visibly
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def tiny_config(kind: str, **overrides: Any) -> PretrainedConfig:
    """Return the configuration of a tiny ``llama``, ``gpt_neox`` or ``gemma`` (Gemma 2: logits are soft-capped)."""
    choose("tiny model", kind, TINY_MODELS)
    if kind == "llama":
        return LlamaConfig(**{**_SHAPE, "num_key_value_heads": 2, **overrides})
    if kind == "gpt_neox":
        return GPTNeoXConfig(**{**_SHAPE, **overrides})
    gemma = {"num_key_value_heads": 2, "head_dim": 8, "final_logit_softcapping": 5.0, "sliding_window": 16}
    return Gemma2Config(**{**_SHAPE, **gemma, **overrides})


def tiny_model(
    kind: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any
) -> PreTrainedModel:
    """Make a causal language model with random weights that depend on ``seed`` alone.

    Args:
        kind: see :func:`tiny_config`.
        seed: of the weights; the global random state is left as it was.
        dtype: of the weights.
        **overrides: fields of the configuration, e.g. ``tie_word_embeddings=True``.
    """
    return make_model(MODEL_FOR_CAUSAL_LM_MAPPING, tiny_config(kind, **overrides), seed, dtype)


def save_tiny(folder: Path, kind: str = "llama", *, seed: int = 0) -> Path:
    """Save a tiny model with the byte-level tiny tokenizer into ``folder``; ``from_pretrained`` reads it."""
    quiet_transformers()
    tiny_model(kind, seed=seed).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_folder(kind: str) -> Path:
    """Return the cached folder of the model that ``model.name=tiny:<kind>`` stands for, made where it is not whole.

    Its name holds the fingerprint of what it is made from. With several processes the first one makes it, since
    ``save_pretrained`` writes on that one alone, and the others wait until it is there (not at a barrier: this may be
    called on one process more often than on another).

    Raises:
        TimeoutError: if the first process has not made it after two minutes.
    """
    key = sha256_json([FORMAT, tiny_config(kind).to_dict(), fingerprint_tokenizer(tiny_tokenizer())])[:16]
    folder = cache_folder(None) / "models" / f"tiny-{kind}-{key}"
    if PartialState(cpu=not torch.accelerator.is_available()).is_main_process:  # it may be the first to ask
        return make_whole(folder, lambda target: save_tiny(target, kind))
    for _ in range(1200):
        if folder.is_dir() and damage(folder) is None:
            return folder
        time.sleep(0.1)
    raise TimeoutError(f"{folder} was not made by the first process")


def make_model(classes: Any, config: PretrainedConfig, seed: int, dtype: torch.dtype) -> PreTrainedModel:
    """Make the model that ``classes`` (a mapping of transformers) has for ``config``, weights depending on ``seed``."""
    # The classes themselves and our own initialisation: under ZeRO-3 from_config would shard the model, and the
    # library's initialisation is skipped.
    with torch.random.fork_rng(devices=[]):
        model: PreTrainedModel = classes[type(config)](config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=_SHAPE["initializer_range"], generator=generator)
            elif name.endswith("bias"):
                parameter.zero_()
    torch.nn.Module.to(model, dtype=dtype)
    model.eval()
    return model
