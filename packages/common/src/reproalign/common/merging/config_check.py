"""Whether the configurations of models agree so far that their weights can be merged."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from reproalign.common.errors import UserError
from reproalign.common.merging.blocks import Blocks
from reproalign.common.merging.inputs import Model
from reproalign.common.merging.settings import MergeSettings

# Keys of config.json in which models may differ: how they were saved or trained, and what is checked by itself.
HARMLESS = {
    *("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "architectures", "vocab_size"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "attention_dropout", "hidden_dropout"),
    *("attn_pdrop", "embd_pdrop", "resid_pdrop", "classifier_dropout", "pretraining_tp", "chunk_size_feed_forward"),
    *("_attn_implementation", "initializer_range", "output_hidden_states", "output_attentions", "return_dict"),
    *("num_labels", "id2label", "label2id", "problem_type"),
}
SHOWN = 3  # names that a message lists


def check_architectures(models: Sequence[Model]) -> None:
    """Refuse models of different architectures, and quantised ones.

    Raises:
        UserError: naming the model.
    """
    for model in models:
        if model.config.get("quantization_config"):
            raise UserError(f"'{model.label}' is quantised (quantization_config); dequantise it before merging")
    kinds = [(model.config.get("architectures") or [None])[0] for model in models]
    for model, kind in zip(models, kinds, strict=True):
        if kind != kinds[0]:
            raise UserError(
                f"'{models[0].label}' is a {kinds[0]} and '{model.label}' a {kind}: different architectures cannot be "
                "merged"
            )


def check_configs(labels: Sequence[str], blocks: Sequence[Blocks], settings: MergeSettings) -> list[str]:
    """Compare the configurations with the first one; return what the user should know of differences.

    Raises:
        UserError: if a difference is not allowed, or classes have other names.
    """
    first, *others = [entry.model.config.to_dict() for entry in blocks]
    taken = settings.files_from or labels[0]
    notes = []
    for label, other in zip(labels[1:], others, strict=True):
        classes = [(entry.get("num_labels"), entry.get("id2label")) for entry in (first, other)]
        if classes[0] != classes[1]:
            raise UserError(
                f"'{labels[0]}' and '{label}' classify differently (id2label in config.json): "
                f"{classes[0][1]} and {classes[1][1]}; a merged head would have no meaning"
            )
        differing = sorted(
            key for key in (first.keys() | other.keys()) - HARMLESS if _plain(first.get(key)) != _plain(other.get(key))
        )
        if not differing:
            continue
        shown = "; ".join(f"{key}: {first.get(key)} and {other.get(key)}" for key in differing[:SHOWN])
        text = f"the configurations of '{labels[0]}' and '{label}' differ in {shown}"
        if "config" not in settings.allow:
            raise UserError(f"{text}; add allow=[config] to take that of '{taken}'")
        notes.append(f"{text}: that of '{taken}' is taken")
    return notes


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, sort_keys=True, default=str))
