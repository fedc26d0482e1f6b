"""From golden inputs to this package's functions and back: format translation only, no logic."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from reproalign.dtm import prompt, rows, tokens

Case = dict[str, Any]
ADAPTERS: dict[str, Callable[[Case, Case], Any]] = {}


def adapter(name: str) -> Callable[[Callable[[Case, Case], Any]], Callable[[Case, Case], Any]]:
    """Register an adapter under the golden file's ``function``."""

    def register(function: Callable[[Case, Case], Any]) -> Callable[[Case, Case], Any]:
        ADAPTERS[name] = function
        return function

    return register


@adapter("template_function")
def template_function(inputs: Case, params: Case) -> Any:
    prefix, text = prompt.alpaca(inputs["example"])
    return {"prefix": prefix, "text": text}


@cache
def golden_tokenizer(path: Path, kwargs: tuple[tuple[str, str], ...]) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_file=str(path), **dict(kwargs))


@adapter("preprocess_function")
def preprocess_function(inputs: Case, params: Case) -> Any:
    name = params["tokenizer"]
    kwargs = tuple(params["tokenizer_kwargs"][name].items())
    tokenizer = golden_tokenizer(params["folder"] / f"tokenizer_{name}.json", kwargs)
    config = tokens.resolved(tokens.TokensConfig(max_length=params["block_size"]), "released")
    (row,) = tokens.tokenize(Dataset.from_list([inputs["example"]]), tokenizer, config)
    batch = tokens.collator(tokenizer)([row])
    ids, labels = row["input_ids"], row["labels"]
    (only_prompt,) = tokens.tokenize(Dataset.from_list([{**inputs["example"], "output": ""}]), tokenizer, config)
    prefix = only_prompt["input_ids"]
    return {
        "input_ids": ids,
        "attention_mask": batch["attention_mask"][0, : len(ids)],
        "labels": labels,
        "n_prefix_tokens": len(prefix),
        "n_supervised": row["supervised"],
        "prefix_is_token_prefix": ids[: len(prefix)] == prefix,
        "has_eos": ids[-1] == tokenizer.eos_token_id,
    }


@adapter("collator as configured by the original")
def collate(inputs: Case, params: Case) -> Any:
    collator = tokens.RowCollator(params["pad_token_id"], params["padding_side"], params["pad_to_multiple_of"])
    return collator(inputs["features"])


@adapter("DataTrainingArguments post-init")
def data_training_arguments(inputs: Case, params: Case) -> Any:
    files = [[] if inputs[name] is None else [inputs[name]] for name in ("train_file", "cluster_file")]
    found = rows.parse_selection(*files, inputs.get("cluster_id"))
    # Ours has no ids where the original keeps the empty text.
    return {
        "train_file": found.rows,
        "cluster_file": found.labels,
        "cluster_id": "" if found.clusters == [] else found.clusters,
    }


@adapter("row selection before training")
def row_selection(inputs: Case, params: Case) -> Any:
    clusters = rows.parse_clusters(params["cluster_id"])
    ids = [row for file in inputs["row_ids_per_file"] for row in file]
    for given, file in zip(inputs["clusters_per_file"], inputs["row_ids_per_file"], strict=True):
        rows.check_length(given, len(file), "clusters_per_file")
    labels = [np.array(given, dtype=object) for given in inputs["clusters_per_file"]]  # some hold texts
    order = rows.selected_order(np.concatenate(labels), clusters, params["seed"], params["data_ratio"])
    counted = clusters is not None  # the original counts where it selects
    return {
        "order": [ids[index] for index in order],
        "count_selected_per_file": [int(np.isin(part, clusters).sum()) for part in labels] if counted else None,
        "count_total_per_file": [len(part) for part in labels] if counted else None,
    }
