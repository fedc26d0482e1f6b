"""From golden inputs to this package's functions and back: format translation only, no logic."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from reproalign.common.logprobs.chunked import chunked_token_logps
from reproalign.common.logprobs.scoring import token_losses
from reproalign.common.logprobs.statistics import HeadStates
from reproalign.dtm import prompt, rows, tokens
from reproalign.dtm.study import metrics
from reproalign.dtm.train import loss

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


@adapter("SFT objective, both normalisations")
def sft_objective(inputs: Case, params: Case) -> Any:
    count = len(inputs["micro_batches"])
    supervised = [(np.array(batch["labels"])[:, 1:] != tokens.IGNORED).sum() for batch in inputs["micro_batches"]]
    share = loss.token_share(int(sum(supervised)), params["grad_accum"], params["ranks"])
    found: Case = {"n_tokens": int(sum(supervised))}
    for name in ("mean_of_means", "token_mean"):
        logits = [torch.tensor(b["logits"], dtype=torch.float64, requires_grad=True) for b in inputs["micro_batches"]]
        micro = []
        for values, batch in zip(logits, inputs["micro_batches"], strict=True):
            labels = torch.tensor(batch["labels"])[:, 1:]
            scored = labels != tokens.IGNORED
            head = torch.eye(values.shape[2], dtype=torch.float64)  # logits are hidden states of this head
            losses = -chunked_token_logps(values[:, :-1][scored], head, labels[scored])
            micro.append(loss.micro_batch_mean(losses) if name == "mean_of_means" else loss.token_mean(losses, share))
        total = torch.stack(micro).sum() / count  # what accumulation and data parallelism make of them
        gradients = torch.autograd.grad(total, logits)
        if name == "mean_of_means":
            found["micro_losses"] = [value.item() for value in micro]
        nothing = name == "token_mean" and not found["n_tokens"]  # the original then divides by nothing
        found[f"loss_{name}"] = None if nothing else total.item()
        found[f"grad_{name}"] = None if nothing else gradients
    return found


@adapter("evaluation accuracy and perplexity")
def evaluation_metrics(inputs: Case, params: Case) -> Any:
    logits, labels = torch.tensor(inputs["logits"], dtype=torch.float64), torch.tensor(inputs["labels"])
    scored = labels[:, 1:] != tokens.IGNORED
    _, hits = token_losses(HeadStates(logits=logits[:, :-1][scored]), labels[:, 1:][scored])
    count, correct = int(scored.sum()), int(hits.sum())
    return {
        "argmax": logits.argmax(2),
        "accuracy_released": metrics.released_accuracy(correct, [labels.shape[1]] * len(labels)),
        "accuracy_masked": metrics.masked_accuracy(correct, count) if count else None,
        "perplexity": metrics.perplexity(float(inputs["eval_loss"])),
    }
