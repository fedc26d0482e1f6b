"""From golden inputs to this package's functions and back: format translation only, no logic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import yaml
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from reproalign.common.data import templates, tokenize
from reproalign.common.data.collate import PairCollator, pad_rows
from reproalign.common.data.mixing import MixPart, mix_datasets
from reproalign.common.data.sources.shp import order_answers
from reproalign.common.errors import UserError
from reproalign.common.evaluation import mtbench, rewardbench
from reproalign.common.evaluation.calibration import calibration
from reproalign.common.generation.best_of_n import best_of_n
from reproalign.common.logprobs.plain import sequence_logps
from reproalign.common.models.tiny_tokenizers import tiny_tokenizer
from reproalign.common.reward.pooling import pooled_index
from reproalign.common.training.pairs import reward_metrics
from reproalign.common.training.reference import CachedReference, FrozenReference
from reproalign.mmpo import decontaminate, loss, naming, released_cli
from reproalign.mmpo.config import LossConfig
from reproalign.mmpo.data import cap_per_prompt
from reproalign.mmpo.target import released_target
from reproalign.mmpo.trainer import MMPOTrainer

Case = dict[str, Any]
ADAPTERS: dict[str, Callable[[Case, Case], Any]] = {}


def adapter(function: Callable[[Case, Case], Any]) -> Callable[[Case, Case], Any]:
    ADAPTERS[function.__name__.rstrip("_")] = function  # an underscore where the name is taken by an import
    return function


def vector(values: list[float], *, grad: bool = False) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


@adapter
def bt_target(inputs: Case, params: Case) -> Any:
    labels = {entry["prompt_id"]: entry["p_chosen"] for entry in params["soft_labels"] or []}
    return released_target(inputs, params["bt_beta"], labels)


@adapter
def batch_logps(inputs: Case, params: Case) -> Any:
    if "logits_shape" in inputs:
        logits, labels = torch.zeros(inputs["logits_shape"]), torch.zeros(inputs["labels_shape"], dtype=torch.long)
        return {"logps": sequence_logps(logits, labels)}
    logits = vector(inputs["logits"], grad=True)
    labels = torch.tensor(inputs["labels"])
    logps = sequence_logps(logits, labels, params["average_log_prob"], params["label_pad_token_id"])
    (gradient,) = torch.autograd.grad((logps * vector(params["grad_weights"])).sum(), logits)
    return {"logps": logps, "grad_logits_of_weighted_sum": gradient}


def released_targets(values: list[float] | None, as_tensor: bool) -> torch.Tensor | None:
    """What the release's truth test makes of targets: an empty list and a one-element tensor of 0 are "none" (Q8)."""
    if not values or (as_tensor and values == [0.0]):
        return None
    return vector(values)


@adapter
def dpo_loss(inputs: Case, params: Case) -> Any:
    names = ("policy_chosen_logps", "policy_rejected_logps", "reference_chosen_logps", "reference_rejected_logps")
    logps = [vector(inputs[name], grad=True) for name in names]
    config = LossConfig(
        type=params["loss_type"],
        beta=params["beta"],
        label_smoothing=params["label_smoothing"],
        reference_free=params["reference_free"],
    )
    targets = released_targets(inputs["p_chosen"], params["p_chosen_is_tensor"])
    result = loss.pair_loss(config, "released", *logps, targets)
    mean = result.losses.mean()
    gradients = torch.autograd.grad(mean, logps, allow_unused=True)
    labels = ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected")
    return {
        "losses": result.losses,
        "loss": mean.item(),
        "chosen_rewards": result.chosen_rewards,
        "rejected_rewards": result.rejected_rewards,
        **{f"grad_{name}": gradient for name, gradient in zip(labels, gradients, strict=True)},
    }


@adapter
def dpo_batch_metrics(inputs: Case, params: Case) -> Any:
    """Runs the trainer's own computation of a micro-batch over models that count their calls."""
    calls: list[str] = []

    class Stub(torch.nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, **_: Any) -> Case:
            calls.append(self.name)
            sums = [*inputs[f"{self.name}_chosen_logps"], *inputs[f"{self.name}_rejected_logps"]]
            return {"sums": vector(sums), "counts": torch.ones(len(sums))}

    batch = dict.fromkeys(("input_ids", "attention_mask", "completion_mask"), torch.zeros(0))
    targets = released_targets(inputs.get("p_chosen"), False)
    if targets is not None:
        batch["p_chosen"] = targets
    trainer = MMPOTrainer.__new__(MMPOTrainer)
    trainer.loss_config = LossConfig(
        type=params["loss_type"], beta=params["beta"], label_smoothing=params["label_smoothing"]
    )
    trainer.variant = "released"
    if params["reference_precomputed"]:
        trainer.reference = CachedReference()
        batch |= {f"ref_{side}_logps": vector(inputs[f"reference_{side}_logps"]) for side in ("chosen", "rejected")}
    else:
        trainer.reference = FrozenReference(Stub("reference"))
    scores = trainer.pair_scores(Stub("policy"), batch)
    metrics = scores.metrics | reward_metrics(scores.chosen, scores.rejected)
    metrics |= {f"logits/{side}": vector(inputs[f"policy_{side}_logits"]).mean() for side in ("chosen", "rejected")}
    prefix = "eval_" if params["train_eval"] == "eval" else ""
    return {
        "loss": scores.losses.mean(),
        "metrics": {f"{prefix}{name}": value for name, value in metrics.items()},
        "forward_calls": calls,
    }


@adapter
def tokenize_row(inputs: Case, params: Case) -> Any:
    rules = tokenize.Rules(
        bos_id=params["bos_token_id"],
        eos_id=params["eos_token_id"],
        max_length=params["max_length"],
        max_prompt_length=params["max_prompt_length"],
        truncation=params["truncation_mode"],
        boundary="released",
        special_tokens="released",
    )
    encode = {"byte": encode_bytes, "byte_pairs": encode_byte_pairs}[params["tokenizer"]]
    return released_row(tokenize.tokenize_row(encode, inputs["prompt"], inputs["chosen"], inputs["rejected"], rules))


@adapter
def rewardbench_tokenize_row(inputs: Case, params: Case) -> Any:
    rules = tokenize.Rules(
        bos_id=1,
        eos_id=2,
        max_length=params["max_length"],
        max_prompt_length=params["max_prompt_length"],
        boundary="released",
        special_tokens="released",
    )
    texts = rewardbench.response_texts(inputs["prompt"], inputs["text_chosen"], inputs["text_rejected"])
    return released_row(tokenize.tokenize_row(encode_bytes, inputs["prompt"], *texts, rules))


def released_row(row: Case) -> Case:
    """The release's columns: labels and masks in place of a boundary."""
    result = {"prompt_input_ids": row["prompt_input_ids"], "prompt_attention_mask": [1] * len(row["prompt_input_ids"])}
    for side in ("chosen", "rejected"):
        ids, start = row[f"{side}_input_ids"], row[f"{side}_prompt_length"]
        result[f"{side}_input_ids"] = ids
        result[f"{side}_attention_mask"] = [1] * len(ids)
        result[f"{side}_labels"] = [-100] * start + ids[start:]
    return result


def encode_bytes(text: str) -> list[int]:
    return [byte + 3 for byte in text.encode()]


def encode_byte_pairs(text: str) -> list[int]:
    data, ids, index = text.encode(), [], 0
    while index < len(data):
        pair = data[index : index + 2]
        if len(pair) == 2 and pair[0] == pair[1]:
            ids.append(300 + pair[0])
            index += 2
        else:
            ids.append(pair[0] + 3)
            index += 1
    return ids


@adapter
def dpo_collate(inputs: Case, params: Case) -> Any:
    features = inputs["features"]
    fill = {"input_ids": params["pad_token_id"], "attention_mask": 0, "labels": params["label_pad_token_id"]}
    batch: Case = {}
    for name in features[0]:
        values = [feature[name] for feature in features]
        kind = next((kind for kind in fill if name.endswith(f"_{kind}")), None)
        if kind:
            batch[name] = pad_rows(values, fill[kind], side="left" if name.startswith("prompt") else "right")
        else:
            batch[name] = torch.tensor(values) if name.endswith("_logps") else values
    rows = [
        {
            f"{side}_{key}": value
            for side in ("chosen", "rejected")
            for key, value in (
                ("input_ids", feature[f"{side}_input_ids"]),
                ("prompt_length", sum(label == params["label_pad_token_id"] for label in feature[f"{side}_labels"])),
            )
        }
        for feature in features
    ]
    pairs = PairCollator(params["pad_token_id"])(rows)
    labels = pairs["input_ids"].masked_fill(pairs["completion_mask"] == 0, params["label_pad_token_id"])
    return {
        "batch": batch,
        "batch_types": {k: "tensor" if isinstance(v, torch.Tensor) else "list" for k, v in batch.items()},
        "concatenated": {
            "concatenated_input_ids": pairs["input_ids"],
            "concatenated_attention_mask": pairs["attention_mask"],
            "concatenated_labels": labels,
        },
    }


def golden_tokenizer(params: Case) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token, tokenizer.eos_token = params["bos_token"], params["eos_token"]
    templates.set_template(tokenizer, params["template"])
    return tokenizer


@adapter
def chat_format(inputs: Case, params: Case) -> Any:
    tokenizer = golden_tokenizer(params)
    system = "auto" if params["auto_insert_empty_system_msg"] else None
    texts = templates.render_example(tokenizer, inputs, params["task"], system=system)
    inserted = {"sft": ["messages"], "generation": ["messages"], "rm": ["chosen", "rejected"], "dpo": []}
    return texts | {
        "mutated_example": inputs
        | {
            name: templates.with_system(inputs[name], system, tokenizer.chat_template)
            for name in inserted[params["task"]]
        }
    }


@adapter
def shp_preprocess(inputs: Case, params: Case) -> Any:
    tokenizer = golden_tokenizer(params)
    history, best, other, votes = order_answers(inputs)
    system = "auto" if params["auto_insert_empty_system_msg"] else None
    prompt = templates.with_system([{"role": "user", "content": history}], system, tokenizer.chat_template)
    answers = [[{"role": "assistant", "content": answer}] for answer in (best, other)]
    chosen, rejected = (templates.render_completion(tokenizer, prompt, answer, alone=True) for answer in answers)
    return {
        "text_prompt": templates.render(tokenizer, prompt),
        "text_chosen": chosen,
        "text_rejected": rejected,
        "score_chosen": votes[0],
        "score_rejected": votes[1],
    }


@adapter
def shp_cap(inputs: Case, params: Case) -> Any:
    return {"kept": cap_per_prompt(inputs["text_prompt"], params["max_per_prompt"])}


@adapter
def extract_docstring(inputs: Case, params: Case) -> Any:
    return {"docstring": decontaminate.extract_docstring(inputs["prompt"])}


@adapter
def mix_datasets_(inputs: Case, params: Case) -> Any:
    configs = params["configs"]
    if configs is not None and len(configs) != len(inputs["datasets"]):
        raise UserError("one configuration per data set is needed")
    parts = []
    for name, entry in inputs["datasets"].items():
        splits = {
            split: Dataset.from_list([{"id": f"{name}/{split}/{row}"} for row in range(entry["sizes"][split])])
            for split in params["splits"]
        }
        parts.append(MixPart(name, entry["fraction"], splits))
    if params["columns_to_keep"] is None:
        parts = [
            MixPart(part.name, part.fraction, {s: rows.remove_columns("id") for s, rows in part.splits.items()})
            for part in parts
        ]
    mixed = mix_datasets(parts, shuffle=params["shuffle"], released=True)
    if params["columns_to_keep"] is None:
        return {split: {"columns": rows.column_names, "num_rows": len(rows)} for split, rows in mixed.items()}
    return {split: rows["id"][:] for split, rows in mixed.items()}


@adapter
def run_name(inputs: Case, params: Case) -> Any:
    return {"run_name": naming.run_name(params["kind"], **inputs)}


@adapter
def cli_overrides(inputs: Case, params: Case) -> Any:
    values = released_cli.apply_overrides(
        yaml.load(inputs["yaml"], ReleasedLoader), inputs["argv"], released_cli.released_kinds()
    )
    read = {name: values[name] for name in params["read_fields"]}
    return {"values": read, "types": {name: type(value).__name__ for name, value in read.items()}}


class ReleasedLoader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it."""


@adapter
def rm_preprocess(inputs: Case, params: Case) -> Any:
    sides: Case = {"chosen_probs": [], "kept": []}
    for row in inputs["rows"]:
        lengths = []
        for side in ("chosen", "rejected"):
            ids = [1, *encode_bytes(row[f"text_{side}"])]
            sides.setdefault(f"input_ids_{side}", []).append(ids)
            sides.setdefault(f"attention_mask_{side}", []).append([1] * len(ids))
            lengths.append(len(ids))
        sides["chosen_probs"].append(released_target(row, params["bt_beta"])["p_chosen"])
        sides["kept"].append(max(lengths) <= params["max_length"])
    return sides


@adapter
def rm_collate(inputs: Case, params: Case) -> Any:
    features, multiple = inputs["features"], params["pad_to_multiple_of"]
    names = [f"{name}_{side}" for side in ("chosen", "rejected") for name in ("input_ids", "attention_mask")]
    if any(name not in feature for name in names for feature in features):
        raise UserError(f"the columns {', '.join(names)} are needed")
    batch: Case = {"return_loss": True}
    for name in names:
        fill = params["pad_token_id"] if name.startswith("input_ids") else 0
        batch[name] = pad_rows([feature[name] for feature in features], fill, multiple_of=multiple)
    dtype = None
    for name in ("chosen_probs", "margin"):
        if name in features[-1]:
            values = [feature[name] for feature in features if name in feature]
            batch[name] = torch.tensor(values, dtype=torch.float32)
            dtype = str(batch[name].dtype)
    return {"batch": batch, "target_dtype": dtype}


@adapter
def rm_loss(inputs: Case, params: Case) -> Any:
    if inputs["chosen_probs"] is None:
        raise UserError("chosen_probs is needed")
    chosen, rejected = (vector(inputs[f"rewards_{side}"], grad=True) for side in ("chosen", "rejected"))
    margin = None if inputs["margin"] is None else vector(inputs["margin"])
    losses = loss.reward_loss(
        chosen.squeeze(-1),
        rejected.squeeze(-1),
        vector(inputs["chosen_probs"]),
        margin=margin,
        broadcast_compat=params["target_shape"] == "B",
    )
    gradients = torch.autograd.grad(losses.mean(), [chosen, rejected])
    return {
        "loss": losses.mean().item(),
        "grad_rewards_chosen": gradients[0],
        "grad_rewards_rejected": gradients[1],
    }


@adapter
def rm_eval(inputs: Case, params: Case) -> Any:
    rewards = torch.cat([vector(inputs["rewards_chosen"]), vector(inputs["rewards_rejected"])], dim=1)
    preferences = rewards.softmax(-1)
    accuracy = (preferences[:, 0] > preferences[:, 1]).double().mean().item()
    return {"preferences": preferences, "labels": [0.0] * len(rewards), "accuracy": accuracy}


@adapter
def seqcls_pool(inputs: Case, params: Case) -> Any:
    return {"pooled_index": pooled_index(torch.tensor(inputs["input_ids"]), params["pad_token_id"], "first_pad")}


@adapter
def rewardbench_sections(inputs: Case, params: Case) -> Any:
    scores = rewardbench.section_scores(inputs["subsets"], inputs["prior_sets"])
    return {"sections": scores.sections, "average": scores.average, "prior_sets": scores.prior_sets}


@adapter
def rewardbench_logps(inputs: Case, params: Case) -> Any:
    logits, labels = vector(inputs["logits"]), torch.tensor(inputs["labels"])
    return {"logps": rewardbench.response_logps(logits, labels, params["ref_free_norm"])}


@adapter
def rewardbench_dpo_score(inputs: Case, params: Case) -> Any:
    labels = torch.tensor(inputs["labels"])
    policy = rewardbench.response_logps(vector(inputs["policy_logits"]), labels, params["ref_free_norm"])
    reference = None
    if not params["reference_free"]:
        reference = rewardbench.response_logps(vector(inputs["reference_logits"]), labels, params["ref_free_norm"])
    chosen, rejected = rewardbench.implicit_rewards(policy, reference)
    return {"scores_chosen": chosen, "scores_rejected": rejected, "results": (chosen > rejected).int()}


@adapter
def mtbench_rating(inputs: Case, params: Case) -> Any:
    return {"score": mtbench.rating(inputs["judgment"])}


@adapter
def ece(inputs: Case, params: Case) -> Any:
    result = calibration(inputs["reward_margins"], n_bins=params["n_bins"], lower_edge=params["lower_edge"])
    bins = [[bin.index, bin.count, bin.accuracy, bin.confidence] for bin in result.bins]
    return {**result.__dict__, "bins": bins}


@adapter
def best_of_n_(inputs: Case, params: Case) -> Any:
    result = best_of_n(inputs["proxy_scores"], params["n"], inputs["gold_scores"])
    return {"selected": np.asarray(result.selected), "mean_gold": result.mean_gold, "mean_proxy": result.mean_proxy}


@adapter
def decontaminate_(inputs: Case, params: Case) -> Any:
    return {"keep": decontaminate.keep_mask(inputs["texts"], inputs["filter_out"])}
