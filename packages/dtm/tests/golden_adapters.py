"""From golden inputs to this package's functions and back: format translation only, no logic."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.nn.functional import linear
from transformers import PreTrainedTokenizerFast

from reproalign.common.config.data import RowsConfig
from reproalign.common.logprobs.head_states import HeadStates
from reproalign.common.logprobs.scoring import token_losses
from reproalign.common.merging import adapter_merge, methods
from reproalign.common.merging.adapters import Factors
from reproalign.common.testing.oracle import run_logps
from reproalign.common.text.collate import RowCollator
from reproalign.common.training import token_average as loss
from reproalign.dtm import prompt, rows, tokens
from reproalign.dtm.disperse.clustering import cluster_embeddings
from reproalign.dtm.disperse.config import DisperseConfig, EmbeddingConfig, InstructionsConfig, KMeansConfig
from reproalign.dtm.disperse.embed import embed_shards, read_texts
from reproalign.dtm.disperse.embeddings import Embeddings
from reproalign.dtm.disperse.random_split import random_labels
from reproalign.dtm.disperse.released_files import write_released_labels
from reproalign.dtm.disperse.settings import resolve
from reproalign.dtm.disperse.verb import assign, extract_rows
from reproalign.dtm.merge import released
from reproalign.dtm.merge.settings import read_weights
from reproalign.dtm.rules import RELEASED
from reproalign.dtm.study import metrics

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
    config = tokens.resolved(tokens.TokensConfig(max_length=params["block_size"]), RELEASED.tokens)
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
    collator = RowCollator(params["pad_token_id"], params["padding_side"], params["pad_to_multiple_of"])
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
            losses = -run_logps(values, torch.tensor(batch["labels"]), tokens.IGNORED)[0]
            micro.append(loss.micro_batch_mean(losses) if name == "mean_of_means" else loss.token_mean(losses, share))
        total = torch.stack(micro).sum() / count  # what accumulation and data parallelism make of them
        gradients = torch.autograd.grad(total, logits)
        if name == "mean_of_means":
            found["micro_losses"] = [value.item() for value in micro]
        undefined = name == "token_mean" and not found["n_tokens"]  # in the record; here 0, with a gradient of 0
        found[f"loss_{name}"] = None if undefined else total.item()
        found[f"grad_{name}"] = None if undefined else gradients
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


DTYPES = {name: getattr(torch, name) for name in ("float16", "bfloat16", "float32", "float64")}


def numbers(tensor: torch.Tensor) -> list[Any]:
    return tensor.detach().double().tolist()


def matrix(rows: list[Any], dtype: str = "float64") -> torch.Tensor:
    return torch.from_numpy(np.array(rows, dtype=np.float64)).to(DTYPES[dtype])  # NumPy reads "nan" and "inf"


def state(entries: Case) -> dict[str, torch.Tensor]:
    return {name: matrix(entry["data"], entry["dtype"]).view(entry["shape"]) for name, entry in entries.items()}


def entries(state: dict[str, torch.Tensor]) -> Case:
    return {
        name: {
            "shape": list(tensor.shape),
            "dtype": str(tensor.dtype).removeprefix("torch."),
            "data": numbers(tensor.flatten()),
        }
        for name, tensor in state.items()
    }


@adapter("aggregate")
def aggregate(inputs: Case, params: Case) -> Any:
    rows = matrix(inputs["T"], params["dtype"]).requires_grad_()
    signs = inputs["final_signs"] and torch.tensor(inputs["final_signs"], dtype=rows.dtype)
    found = released.aggregate(rows, params["agg_type"], params["ratio"], signs, dim=params["dim"])
    steps = torch.arange(1, found.numel() + 1, dtype=found.dtype) / found.numel()
    (grad,) = torch.autograd.grad((found * steps).sum(), rows)
    return {
        "result": numbers(found),
        "dtype": str(found.dtype).removeprefix("torch."),
        "shape": list(found.shape),
        "grad": numbers(grad),
    }


@adapter("statedict2vector / vector2statedict")
def statedict_vector(inputs: Case, params: Case) -> Any:
    given, names = state(inputs["state_dict"]), (params["remove_keys"], params["keep_keys"])
    vector = released.flatten(given, *names)
    rebuilt = released.unflatten(torch.tensor(inputs["new_vector"], dtype=torch.float64), given, *names)
    return {
        "vector": numbers(vector),
        "vector_dtype": str(vector.dtype).removeprefix("torch."),
        "keys_left_in_input_dict": released.kept_names(given, *names),  # ours leaves the dict as it is
        "rebuilt_keys": list(rebuilt),
        "rebuilt": entries(rebuilt),
    }


@adapter("basic_merging")
def basic_merging(inputs: Case, params: Case) -> Any:
    states = [state(entry) for entry in inputs["state_dicts"]]
    merged = released.basic_merging(params["agg_mode"], states, params["ratio"], params["remove_keys"])
    return {
        "keys": list(merged),
        "merged": entries(merged),
        "first_input_keys_after": released.kept_names(states[0], params["remove_keys"]),  # likewise
    }


@adapter("merge script: flag parsing and normalisation")
def mix_ratio(inputs: Case, params: Case) -> Any:
    paths = inputs["ckpt_paths"].split(",")
    return {"ckpt_paths": paths, "mix_ratio": released.normalized(read_weights(inputs["mix_ratio"], len(paths)))}


@adapter("TIES trimming (author TieMerge repository)")
def ties_trim(inputs: Case, params: Case) -> Any:
    values, kept = released.trim(matrix(inputs["T"]), params["threshold"])
    return {"values": values, "mask": kept.int(), "kept_per_row": kept.sum(1)}


@adapter("norm-fraction trimming (author TieMerge repository)")
def norm_fraction_trim(inputs: Case, params: Case) -> Any:
    values, kept = released.trim_by_norm(matrix(inputs["T"]), params["normfrac"])
    return {"values": values, "mask": kept.int(), "kept_fraction": kept.float().mean(1)}


@adapter("TIES sign election (author TieMerge repository)")
def ties_signs(inputs: Case, params: Case) -> Any:
    rows = matrix(inputs["T"])
    return {
        "signs": released.elect_signs(rows),
        "signs_zero_resolved_to_minority": released.elect_signs(rows, "minority"),
    }


@adapter("TIES disjoint aggregation (author TieMerge repository)")
def ties_disjoint(inputs: Case, params: Case) -> Any:
    rows = matrix(inputs["T"]).requires_grad_()
    signs = None if inputs["signs"] is None else torch.tensor(inputs["signs"], dtype=torch.float64)
    found = released.disjoint(rows, params["agg_mode"], signs)
    (grad,) = torch.autograd.grad(found.sum(), rows)
    return {"result": numbers(found), "grad_of_sum": numbers(grad)}


@adapter("TIES merging composed from the author functions")
def ties_merging(inputs: Case, params: Case) -> Any:
    base = torch.tensor(inputs["base"], dtype=torch.float64)
    vectors = matrix(inputs["finetuned"]) - base
    trimmed, _ = released.trim(vectors, params["density"])
    merged = released.ties(vectors, density=params["density"], mode=params["merge"])
    return {
        "trimmed": trimmed,
        "signs": released.elect_signs(trimmed),
        "merged_task_vector": merged,
        "merged": methods.linear([base, merged], (1.0, params["lambda"])),
    }


@adapter("task arithmetic and DARE")
def task_arithmetic_and_dare(inputs: Case, params: Case) -> Any:
    base, scale, density = torch.tensor(inputs["base"], dtype=torch.float64), params["lambda"], 1 - params["drop_p"]
    models = list(matrix(inputs["finetuned"]))
    vectors = [model - base for model in models]
    masks = matrix(inputs["dare_keep_mask"]).bool()
    sparse = [methods.drop_and_rescale(vector, keep, density) for vector, keep in zip(vectors, masks, strict=True)]
    ones = [1.0] * len(models)
    return {
        "task_vector_sum": methods.linear(vectors, ones),
        "task_arithmetic": methods.linear([base, *models], methods.task_arithmetic_weights(ones, scale)),
        "dare_vectors": torch.stack(sparse),
        "dare_weighted": methods.dare_linear(base, sparse, params["weights"]),
        "dare_task_arithmetic": methods.dare_linear(base, sparse, ones, scale=scale),
    }


@adapter("Fisher-weighted merge (formula)")
def fisher(inputs: Case, params: Case) -> Any:
    models, information = list(matrix(inputs["theta"])), list(matrix(inputs["fisher"]))
    return {"merged": methods.fisher(models, information, params["coeff"], floor=params["eps"])}


@adapter("RegMean merge of a linear layer (formula)")
def regmean(inputs: Case, params: Case) -> Any:
    models, grams = [matrix(rows) for rows in inputs["W"]], [matrix(rows) for rows in inputs["gram"]]
    scale = params["off_diagonal_scale"]
    return {"merged": methods.regmean(models, grams, [1.0] * len(models), off_diagonal=scale)}


@adapter("LoRA adapter merge")
def lora_merge(inputs: Case, params: Case) -> Any:
    ratios, scaling = params["mix_ratio"], params["scaling"]
    weight, x = matrix(inputs["W"]), matrix(inputs["x"])
    parts = [Factors(matrix(a), matrix(b), scaling, None, False) for a, b in zip(inputs["A"], inputs["B"], strict=True)]
    states = [{"lora_A": part.a, "lora_B": part.b} for part in parts]
    merged = released.basic_merging("weighted", states, ratios)
    factor = adapter_merge.average_factors(parts, ratios, torch.float64)
    delta = adapter_merge.stack_deltas(parts, ratios, rank=None, dtype=torch.float64)
    roots = [(ratio * scaling) ** 0.5 for ratio in ratios]  # what PEFT's linear gives both factors
    peft_way = replace(adapter_merge.average_factors(parts, roots, torch.float64), scaling=1.0)
    written = replace(factor, a=merged["lora_A"], b=merged["lora_B"])
    folded = {name: part.fold(weight, 0) for name, part in {"factor": written, "delta": delta}.items()}
    return {
        "merged_A": merged["lora_A"],
        "merged_B": merged["lora_B"],
        "merged_A_exact64": factor.a,
        "merged_B_exact64": factor.b,
        "full_weight_factor_average": folded["factor"],
        "full_weight_delta_average": folded["delta"],
        "y_factor_average": linear(x, folded["factor"]),
        "y_delta_average": linear(x, folded["delta"]),
        "frobenius_gap": float(torch.linalg.matrix_norm(folded["factor"] - folded["delta"])),
        "peft_linear_delta_for_comparison": peft_way.fold(torch.zeros_like(weight), 0),
    }


def extracted(folder: Path, files: dict[str, list[Any]], **options: Any) -> tuple[Any, Any]:
    """Write the original rows into files, and let the command's own function read them."""
    for name, content in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    names = options.pop("names", list(files))
    sets = {name: RowsConfig(path=str(folder / f"{name}.jsonl")) for name in names}
    data = InstructionsConfig(sets=sets)
    settings = resolve(DisperseConfig(output_dir=str(folder), variant="released", data=data, **options))
    return settings, extract_rows(settings, folder)


@adapter("preprocess: first-turn extraction")
def preprocess_row(inputs: Case, params: Case) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        extracted(Path(folder), {"records": [inputs["record"]]}, clusters=1)
        line = (Path(folder) / rows.ROWS).read_text(encoding="utf-8")
    return {"json_line": line.removesuffix("\n"), "row": json.loads(line)}


@adapter("preprocess.py end to end")
def preprocess_file(inputs: Case, params: Case) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        _, found = extracted(Path(folder), {"records": inputs["records"]}, clusters=1)
        lines = (Path(folder) / rows.ROWS).read_bytes().decode().split("\n")[:-1]
    labels = random_labels(found.rows, params["n_cluster"], params["python_random_seed"])
    return {"lines": lines, "repaired_assignment": labels.tolist()}


@adapter("random dispersal (repaired)")
def random_dispersal(inputs: Case, params: Case) -> Any:
    labels = random_labels(inputs["n"], params["n_cluster"], params["seed"])
    return {"assignment": labels.tolist(), "counts": np.bincount(labels, minlength=params["n_cluster"]).tolist()}


@adapter("k-means clustering of embeddings")
def kmeans(inputs: Case, params: Case) -> Any:
    embeddings = np.array(inputs["embeddings"], np.float32)
    options = KMeansConfig(
        algorithm="released",
        iterations=params["num_iters"],
        seed=params["seed"],
        points_per_cluster=params["max_points_per_centroid"],
    )
    found = cluster_embeddings(Embeddings([embeddings]), params["num_clusters"], options, seed=0)
    groups = [found.labels[(embeddings == row).all(axis=1)] for row in np.unique(embeddings, axis=0)]
    distinct = len(groups)
    return {
        "assignment": found.labels.tolist(),
        "centroids": found.centroids,
        "counts": np.bincount(found.labels, minlength=params["num_clusters"]).tolist(),
        "n_empty_splits": found.facts["splits"],
        "n_rows_where_cosine_argmax_differs": found.facts["cosine_differs"],
        "exact_match_expected": distinct >= params["num_clusters"],
        "identical_rows_share_label": all(len(set(group.tolist())) == 1 for group in groups),
    }


@adapter("data_clustering.py end to end with a stub embedder")
def data_clustering(inputs: Case, params: Case) -> Any:
    vectors = inputs["embeddings_by_text"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings, found = extracted(
            folder,
            inputs["files"],
            names=params["dataset_name"].split(","),
            method="kmeans",
            clusters=params["num_clusters"],
            embedding=EmbeddingConfig(model=params["model_name_or_path"]),
            kmeans=KMeansConfig(iterations=params["num_iters"]),
        )
        texts = read_texts(folder / rows.ROWS, settings.config.embedding.text)
        stub = lambda: lambda part: np.array([vectors[text] for text in part], np.float32)  # noqa: E731
        embed_shards(texts, folder, stub, rows=found.rows, shard_size=4, batch_size=3)
        labels, _ = assign(settings, found.rows, Embeddings(sorted(folder.glob("shard-*.npy"))))
        files = write_released_labels(
            folder, params["model_name_or_path"], labels, found.set_sizes, params["num_clusters"]
        )
        return {"files_written": {file.relative_to(folder).as_posix(): json.loads(file.read_text()) for file in files}}
