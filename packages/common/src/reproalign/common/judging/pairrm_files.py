"""PairRM's published files, in both layouts.

The weights are on the Hub twice, with the same tensors: ``llm-blender/PairRM`` has the ranker's settings in
``config.json`` and says nothing of the backbone's shape, ``llm-blender/PairRM-hf`` has a configuration as transformers
writes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import DebertaV2Config, PreTrainedTokenizerFast

from reproalign.common.errors import UserError, first_line
from reproalign.common.judging.pairrm import DebertaV2PairRM, PairFormat, PairRM

# What every published DeBERTa-v3 has, whatever its size.
DEBERTA_V3 = {
    "relative_attention": True,
    "position_biased_input": False,
    "pos_att_type": ["p2c", "c2p"],
    "share_att_key": True,
    "norm_rel_ebd": "layer_norm",
    "max_position_embeddings": 512,
    "max_relative_positions": -1,
    "layer_norm_eps": 1e-7,
    "type_vocab_size": 0,
    "pad_token_id": 0,
}
_HEAD = 64  # hidden units of an attention head, in all of them too
_HF_FIELDS = ("n_tasks", "drop_out", "source_prefix_id", "cand1_prefix_id", "cand2_prefix_id")


def load_pairrm(folder: Path, dtype: torch.dtype = torch.float32, name: str | None = None) -> PairRM:
    """Load PairRM from a folder of either layout, on the accelerator if there is one.

    Args:
        folder: ``config.json``, safetensors and ``tokenizer.json``.
        dtype: of the weights; the head's difference is taken in float32.
        name: what errors call the folder.

    Raises:
        UserError: for another architecture, a tensor that is missing, not PairRM's or of another shape, or a tokenizer
            without the tokens before the prompt and the responses.
    """
    name = name or str(folder)
    tokenizer = _load_tokenizer(folder, name)
    shapes = _read_shapes(folder, name)
    config, form = _read_config(folder, tokenizer, shapes, name)
    with torch.device("meta"):
        wanted = {key: list(tensor.shape) for key, tensor in DebertaV2PairRM(config).state_dict().items()}
    for kind, keys in (
        ("lacks", wanted.keys() - shapes.keys()),
        ("has an unknown", shapes.keys() - wanted.keys()),
        ("has another shape for", {key for key in wanted if shapes.get(key) != wanted[key]}),
    ):
        if keys:
            raise UserError(f"{name}: model.safetensors {kind} tensor {min(keys)} ({len(keys)} in all)")
    try:
        network: Any = DebertaV2PairRM.from_pretrained(folder, config=config, dtype=dtype, use_safetensors=True)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise UserError(f"cannot load PairRM from {name}: {first_line(error)}") from error
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    return PairRM(network.to(device).eval(), tokenizer, form)


def _load_tokenizer(folder: Path, name: str) -> PreTrainedTokenizerFast:
    # Not AutoTokenizer: DebertaV2Tokenizer of transformers 5 keeps the vocabulary alone and normalises by rules of its
    # own, and the ranker's config.json names another model's tokenizer.
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise UserError(f"{name}: there is no tokenizer.json; give a folder as published by llm-blender")
    try:
        tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(
            folder, tokenizer_file=str(file), truncation_side="right"
        )
    except Exception as error:  # the tokenizers library raises bare exceptions
        raise UserError(f"{name}: tokenizer.json cannot be read ({first_line(error)})") from error
    form = PairFormat()
    vocabulary = tokenizer.get_vocab()
    for token in (form.source, form.first, form.second, tokenizer.sep_token, tokenizer.pad_token):
        if token not in vocabulary:
            raise UserError(f"{name}: the tokenizer has no token {token or 'for [SEP] or [PAD]'}; it is not PairRM's")
    return tokenizer


def _read_shapes(folder: Path, name: str) -> dict[str, list[int]]:
    try:
        with safe_open(folder / "model.safetensors", framework="pt") as file:
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"{name}: model.safetensors cannot be read ({first_line(error)})") from error
    # Old versions of transformers saved this index; it holds no weights.
    shapes.pop("pretrained_model.embeddings.position_ids", None)
    return shapes


def _read_config(
    folder: Path, tokenizer: PreTrainedTokenizerFast, shapes: Mapping[str, list[int]], name: str
) -> tuple[DebertaV2Config, PairFormat]:
    try:
        given = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{name}: config.json cannot be read ({first_line(error)})") from error
    form = PairFormat()
    ids = [tokenizer.get_vocab()[token] for token in (form.source, form.first, form.second)]
    prefixes = dict(zip(_HF_FIELDS[2:], ids, strict=True))
    if DebertaV2PairRM.__name__ in (given.get("architectures") or []):
        missing = next((field for field in _HF_FIELDS if field not in given), None)
        if missing:
            raise UserError(f"{name}: config.json has no {missing}; PairRM's has {', '.join(_HF_FIELDS)}")
        wrong = next((field for field, value in prefixes.items() if given[field] != value), None)
        if wrong:
            raise UserError(f"{name}: {wrong} is {given[wrong]} in config.json and {prefixes[wrong]} in tokenizer.json")
        return DebertaV2Config.from_dict(given), form
    if given.get("ranker_type") == "pairranker" and given.get("model_type") == "deberta":
        try:
            form = PairFormat(source_length=given["source_maxlength"], candidate_length=given["candidate_maxlength"])
            extra = {"n_tasks": given["n_tasks"], "drop_out": given["drop_out"], **prefixes}
        except KeyError as error:
            raise UserError(f"{name}: config.json has no {error.args[0]}, which llm-blender's has") from error
        return _backbone(shapes, extra, name), form
    kind = given.get("architectures") or given.get("ranker_type") or given.get("model_type")
    raise UserError(f"{name} is not PairRM ({kind}); give llm-blender/PairRM, llm-blender/PairRM-hf or such a folder")


def _backbone(shapes: Mapping[str, list[int]], extra: Mapping[str, Any], name: str) -> DebertaV2Config:
    """Return the configuration of the DeBERTa-v3 with these tensors; what they do not show is common to all of them."""
    inner = "pretrained_model.encoder.layer.{}.intermediate.dense.weight"
    try:
        vocabulary, size = shapes["pretrained_model.embeddings.word_embeddings.weight"]
        intermediate, _ = shapes[inner.format(0)]
        positions, _ = shapes["pretrained_model.encoder.rel_embeddings.weight"]
    except KeyError as error:
        raise UserError(f"{name}: model.safetensors lacks tensor {error.args[0]}") from error
    shape = {
        "vocab_size": vocabulary,
        "hidden_size": size,
        "intermediate_size": intermediate,
        "num_hidden_layers": sum(inner.format(layer) in shapes for layer in range(len(shapes))),
        "num_attention_heads": size // _HEAD,
        "position_buckets": positions // 2,
    }
    return DebertaV2Config.from_dict({**DEBERTA_V3, **shape, **extra})
