"""From golden inputs to this package's functions and back: format translation only, no logic."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from datasets import Dataset, Features, Value
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from reproalign.common.config.data import DataConfig, SetConfig
from reproalign.common.config.model import LogprobsConfig
from reproalign.common.config.text import PairTextConfig, RewardTextConfig
from reproalign.common.data.load import load_preferences
from reproalign.common.data.mixing import MixPart, mix_datasets
from reproalign.common.data.sources.shp import order_answers
from reproalign.common.data.sources.ultrafeedback import given_scores
from reproalign.common.errors import UserError, choose
from reproalign.common.evaluation import mtbench, rewardbench
from reproalign.common.evaluation.calibration import calibration, sigmoid
from reproalign.common.generation.best_of_n import best_of_n
from reproalign.common.models.tiny_tokenizers import tiny_tokenizer
from reproalign.common.reward.dialogues import render_dialogues, tokenize_dialogues
from reproalign.common.reward.pooling import pooled_index
from reproalign.common.reward.reading import Reader
from reproalign.common.testing.oracle import run_logps
from reproalign.common.text import templates, tokenize
from reproalign.common.text.collate import IGNORED, PairCollator
from reproalign.common.text.prompts import prompt_text
from reproalign.common.text.render import render_messages, render_pairs
from reproalign.common.training.objective import Pairs, Responses
from reproalign.common.training.pairs import PairTrainer
from reproalign.common.training.reference import CachedReference, FrozenReference
from reproalign.common.training.reward import RewardPairs
from reproalign.mmpo import decontaminate, naming, released_cli
from reproalign.mmpo.config import PairRulesConfig, TargetConfig
from reproalign.mmpo.data import apply_pair_rules, build_targets, cap_per_prompt
from reproalign.mmpo.objective import MMPO, OBJECTIVES, MarginObjective, MMPOReward
from reproalign.mmpo.prepare import reading_rules
from reproalign.mmpo.released import released_accuracy

Case = dict[str, Any]
ADAPTERS: dict[str, Callable[[Case, Case], Any]] = {}


def adapter(function: Callable[[Case, Case], Any]) -> Callable[[Case, Case], Any]:
    ADAPTERS[function.__name__.rstrip("_")] = function  # an underscore where the name is taken by an import
    return function


def vector(values: list[float], *, grad: bool = False) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


def pairs_of(rows: list[Case]) -> Dataset:
    """Rendered pairs with the scores that the source of UltraFeedback reads from the columns of a row."""
    pairs = []
    for row in rows:
        scores = dict(zip(("score_chosen", "score_rejected"), given_scores(row), strict=True))
        texts = {side: row.get(f"text_{side}", "") for side in ("chosen", "rejected")}
        pairs.append({"prompt": "", **texts, "prompt_id": row.get("prompt_id"), **scores})
    return Dataset.from_list(pairs, features=PAIR)


TEXT, NUMBER = Value("string"), Value("float64")
PAIR = Features(
    {
        **dict.fromkeys(["prompt", "chosen", "rejected", "prompt_id"], TEXT),
        **dict.fromkeys(["score_chosen", "score_rejected"], NUMBER),
    }
)


@adapter
def bt_target(inputs: Case, params: Case) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        labels = Path(folder) / "labels.json"
        labels.write_text(json.dumps(params["soft_labels"] or []), encoding="utf-8")
        target = TargetConfig(gamma=params["bt_beta"], soft_labels=str(labels) if params["soft_labels"] else None)
        row = build_targets(pairs_of([inputs]), target)[0]
    return {"p_chosen": row["p_chosen"], "text_chosen": row["chosen"], "text_rejected": row["rejected"]}


@adapter
def batch_logps(inputs: Case, params: Case) -> Any:
    if "logits_shape" in inputs:
        raise UserError(f"logits {inputs['logits_shape']} and labels {inputs['labels_shape']} differ")  # one model's
    logits, normalisation = vector(inputs["logits"], grad=True), "avg" if params["average_log_prob"] else "sum"
    logps = scores_of_logits(logits, inputs["labels"], normalisation, params["label_pad_token_id"])
    (gradient,) = torch.autograd.grad(logps, logits, grad_outputs=vector(params["grad_weights"]))
    undefined = torch.isnan(logps)  # a mean over no tokens: the release's gradient is NaN wherever it scores
    gradient[undefined, :-1] = torch.nan
    return {"logps": logps, "grad_logits_of_weighted_sum": gradient}


def scores_of_logits(
    logits: torch.Tensor, labels: list[Any], normalisation: str, ignored: int = IGNORED
) -> torch.Tensor:
    per_token, scored = run_logps(logits, torch.tensor(labels), ignored)
    return rewardbench.response_scores(per_token, scored.sum(1), normalisation)


def released_targets(values: list[float] | None, as_tensor: bool) -> torch.Tensor | None:
    """What the release's truth test makes of targets: an empty list and a one-element tensor of 0 are "none" (Q8)."""
    if not values or (as_tensor and values == [0.0]):
        return None
    return vector(values)


def objective_of(params: Case, targets: torch.Tensor | None) -> MarginObjective:
    """What a released run has; without targets it smoothes the labels."""
    given = {name: params[name] for name in ("label_smoothing", "reference_free") if name in params}
    objective = OBJECTIVES[choose("loss", params["loss_type"], OBJECTIVES)](**given)
    objective = objective if targets is None else objective.without_smoothing()
    object.__setattr__(objective, "beta", params["beta"])  # not as an option, which refuses a temperature of 0
    return objective


@adapter
def dpo_loss(inputs: Case, params: Case) -> Any:
    names = ("policy_chosen_logps", "policy_rejected_logps", "reference_chosen_logps", "reference_rejected_logps")
    logps = [vector(inputs[name], grad=True) for name in names]
    targets = released_targets(inputs["p_chosen"], params["p_chosen_is_tensor"])
    objective = objective_of(params, targets)
    references = logps[2:] if objective.needs.reference != "none" else (None, None)
    sides = (Responses(policy, ref_logps=ref) for policy, ref in zip(logps[:2], references, strict=True))
    result = objective(Pairs(*sides, targets))
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
            ones = torch.ones(len(sums))
            return {"sums": vector(sums), "counts": ones, "per_token": ones}

    batch = dict.fromkeys(("input_ids", "attention_mask", "completion_mask"), torch.zeros(0))
    targets = released_targets(inputs.get("p_chosen"), False)
    if targets is not None:
        batch["p_chosen"] = targets
    trainer = PairTrainer.__new__(PairTrainer)
    trainer.objective, trainer.logprobs = objective_of(params, targets), LogprobsConfig()
    if params["reference_precomputed"]:
        trainer.reference = CachedReference()
        batch |= {f"ref_{side}_logps": vector(inputs[f"reference_{side}_logps"]) for side in ("chosen", "rejected")}
    else:
        trainer.reference = FrozenReference(Stub("reference"))
    result = trainer.micro_batch(Stub("policy"), batch)
    metrics = {name: value.mean() for name, value in result.metrics.items()}
    metrics |= {f"logits/{side}": vector(inputs[f"policy_{side}_logits"]).mean() for side in ("chosen", "rejected")}
    prefix = "eval_" if params["train_eval"] == "eval" else ""
    return {
        "loss": result.losses.mean(),
        "metrics": {f"{prefix}{name}": value for name, value in metrics.items()},
        "forward_calls": calls,
    }


@adapter
def tokenize_row(inputs: Case, params: Case) -> Any:
    rules = tokenize.TokenRules(
        bos_id=params["bos_token_id"],
        eos_id=params["eos_token_id"],
        max_length=params["max_length"],
        max_prompt_length=params["max_prompt_length"],
        truncation=params["truncation_mode"],
        boundary="released",
        special_tokens="released",
    )
    encode = {"byte": encode_bytes, "byte_pairs": encode_byte_pairs}[params["tokenizer"]]
    return released_row(encode, inputs["prompt"], (inputs["chosen"], inputs["rejected"]), rules)


@adapter
def rewardbench_tokenize_row(inputs: Case, params: Case) -> Any:
    rules = tokenize.TokenRules(
        bos_id=1,
        eos_id=2,
        max_length=params["max_length"],
        max_prompt_length=params["max_prompt_length"],
        boundary="released",
        special_tokens="released",
    )
    texts = rewardbench.response_texts(inputs["prompt"], inputs["text_chosen"], inputs["text_rejected"])
    return released_row(encode_bytes, inputs["prompt"], texts, rules)


def released_row(
    encode: Callable[[str], list[int]], prompt: str, texts: tuple[str, str], rules: tokenize.TokenRules
) -> Case:
    """The release's columns: labels and masks in place of a boundary."""
    wholes = {side: (encode(prompt + text), text) for side, text in zip(("chosen", "rejected"), texts, strict=True)}
    row = tokenize.join_row(encode(prompt), wholes, rules, continuation=encode, is_blank=lambda ids: not ids)
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


def padded(rows: list[Any], pad: int, *, side: str = "right", multiple: int | None = None) -> Case:
    """One batch of the run's collator, which pads both sides of a pair to one length, for one side by itself."""
    pairs = [{"chosen_input_ids": ids, "rejected_input_ids": ids} for ids in rows]
    batch = PairCollator(pad, padding_side=side, pad_to_multiple_of=multiple)(pairs)
    return {name: values[: len(rows)] for name, values in batch.items()}


@adapter
def dpo_collate(inputs: Case, params: Case) -> Any:
    features, ignored = inputs["features"], params["label_pad_token_id"]
    pairs = [
        {
            **{f"{side}_input_ids": feature[f"{side}_input_ids"] for side in ("chosen", "rejected")},
            **{f"{side}_prompt_length": feature[f"{side}_labels"].count(ignored) for side in ("chosen", "rejected")},
        }
        for feature in features
    ]
    whole = PairCollator(params["pad_token_id"])(pairs)
    batch: Case = {}
    for name in features[0]:
        column = [feature[name] for feature in features]
        kind = next((kind for kind in ("input_ids", "attention_mask", "labels") if name.endswith(f"_{kind}")), None)
        side = "left" if name.startswith("prompt") else "right"
        if kind == "input_ids":
            batch[name] = padded(column, params["pad_token_id"], side=side)["input_ids"]
        elif kind == "attention_mask":
            ids = [feature[name.replace("attention_mask", "input_ids")] for feature in features]
            batch[name] = padded(ids, params["pad_token_id"], side=side)["attention_mask"]
        elif kind == "labels":
            batch[name] = padded(column, ignored, side=side)["input_ids"]
        elif name.endswith("_logps"):
            batch[name] = PairCollator(0, extras=(name,))(
                [{**pair, name: value} for pair, value in zip(pairs, column, strict=True)]
            )[name]
        else:
            batch[name] = column
    labels = whole["input_ids"].masked_fill(whole["completion_mask"] == 0, ignored)
    return {
        "batch": batch,
        "batch_types": {k: "tensor" if isinstance(v, torch.Tensor) else "list" for k, v in batch.items()},
        "concatenated": {
            "concatenated_input_ids": whole["input_ids"],
            "concatenated_attention_mask": whole["attention_mask"],
            "concatenated_labels": labels,
        },
    }


def golden_tokenizer(params: Case) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token, tokenizer.eos_token = params["bos_token"], params["eos_token"]
    templates.set_template(tokenizer, params["template"])
    return tokenizer


def rendering(params: Case, **options: Any) -> PairTextConfig:
    system = "auto" if params["auto_insert_empty_system_msg"] else None
    return PairTextConfig(system_message=system, boundary="released", **options)


@adapter
def chat_format(inputs: Case, params: Case) -> Any:
    tokenizer, config, task = golden_tokenizer(params), rendering(params), params["task"]
    needed = {"sft": ["messages"], "generation": ["messages"]}.get(task, ["chosen", "rejected"])
    if task not in ("sft", "generation", "rm", "dpo") or not inputs.keys() >= {*needed}:
        raise UserError("no such task, or a column is missing")
    mutated = {
        name: templates.with_system(inputs[name], config.system_message, tokenizer.chat_template)
        for name in needed
        if task != "dpo"
    }
    if task == "sft":
        texts = render_messages(Dataset.from_list([inputs]), tokenizer, config, DataConfig())[0]
    elif task == "generation":
        texts = {"text": prompt_text(tokenizer, mutated["messages"], "chat")}
    else:
        prompt = inputs["chosen"][:-1] if task == "dpo" else []
        sides = {side: inputs[side][-1:] if task == "dpo" else inputs[side] for side in ("chosen", "rejected")}
        record = Dataset.from_list([{"prompt": prompt, **sides}], features=MESSAGES)
        if task == "dpo":
            row = render_pairs(record, tokenizer, config, DataConfig())[0]
        else:
            row = render_dialogues(record, Reader(tokenizer, reading_rules(config)), DataConfig())[0]
        texts = {f"text_{side}": row[side] for side in sides} | (
            {"text_prompt": row["prompt"]} if task == "dpo" else {}
        )
    return {**texts, "mutated_example": inputs | mutated}


TURNS = [{"role": TEXT, "content": TEXT}]
MESSAGES = Features({"prompt": TURNS, "chosen": TURNS, "rejected": TURNS})


@adapter
def shp_preprocess(inputs: Case, params: Case) -> Any:
    history, best, other, votes = order_answers(inputs)
    turns = {"prompt": ("user", history), "chosen": ("assistant", best), "rejected": ("assistant", other)}
    record = {name: [{"role": role, "content": content}] for name, (role, content) in turns.items()}
    row = render_pairs(Dataset.from_list([record]), golden_tokenizer(params), rendering(params), DataConfig())[0]
    return {f"text_{name}": row[name] for name in turns} | {"score_chosen": votes[0], "score_rejected": votes[1]}


@adapter
def shp_order_and_cap(inputs: Case, params: Case) -> Any:
    """Reads the prompts from files, as a run does; the number of a row stands in its response."""
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for split in ("train", "test"):
            rows = [
                {"prompt": prompt, "chosen": f"{number}", "rejected": f"-{number}"}
                for number, prompt in enumerate(inputs[split])
            ]
            files[split] = Path(folder) / f"{split}.jsonl"
            files[split].write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        paths = {"path": str(files["train"]), "eval_path": str(files["test"])}
        rows = SetConfig(source="preference", fraction=params["fraction"], **paths)
        data = load_preferences(DataConfig(sets={"rows": rows}), seed=0)
    rules = PairRulesConfig(shuffle_seed=params["shuffle_seed"])
    capped = replace(rules, cap_per_prompt=params["max_per_prompt"])

    def numbers(rows: Dataset | None, rules: PairRulesConfig, split: str) -> list[int]:
        return [int(text) for text in apply_pair_rules(rows, rules, split=split, seed=0)["chosen"]]

    return {
        "shuffled_train": numbers(data.train, rules, "train"),
        "train": numbers(data.train, capped, "train"),
        "test": numbers(data.evaluation, capped, "evaluation"),
    }


@adapter
def sft_text(inputs: Case, params: Case) -> Any:
    rows = Dataset.from_list([{"messages": dialogue} for dialogue in inputs["dialogues"]])
    texts = render_messages(rows, golden_tokenizer(params), rendering(params), DataConfig())["text"][:]
    return {"text": texts, "keep": decontaminate.keep_mask(texts, params["filter_out"])}


@adapter
def rewardbench_average(inputs: Case, params: Case) -> Any:
    answers = [
        (name, margin)
        for table in (inputs["subsets"], inputs["prior_sets"])
        for name, (right, examples) in table.items()
        for margin in [1.0] * right + [-1.0] * (examples - right)
    ]
    accuracies = rewardbench.subset_accuracies([name for name, _ in answers], [margin for _, margin in answers])
    scores = rewardbench.section_scores(accuracies)
    return {"accuracies": accuracies, **asdict(scores)}


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
    mixed = mix_datasets(parts, shuffle=params["shuffle"])
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


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token per byte, three above it, after BOS (1), in the form that the run's reader takes."""
    alphabet = bytes_to_unicode()
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, **{alphabet[byte]: byte + 3 for byte in range(256)}}
    backend = Tokenizer(BPE(vocabulary, []))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        chat_template=templates.TEMPLATES["chatml"],
    )


@adapter
def rm_preprocess(inputs: Case, params: Case) -> Any:
    pairs = build_targets(pairs_of(inputs["rows"]), TargetConfig(gamma=params["bt_beta"]))
    pairs = pairs.add_column("row", list(range(len(pairs))))
    text = RewardTextConfig(max_length=params["max_length"], overlong="drop", special_tokens="released")
    reader = Reader(byte_tokenizer(), reading_rules(text))
    try:
        kept = tokenize_dialogues(pairs, reader, text.overlong, DataConfig())["row"][:]
    except UserError:  # none is left, which no run goes on with
        kept = []
    result: Case = {"chosen_probs": pairs["p_chosen"][:], "kept": [row in kept for row in range(len(pairs))]}
    for side in ("chosen", "rejected"):
        result[f"input_ids_{side}"] = reader.encode(pairs[side][:])
        result[f"attention_mask_{side}"] = [[1] * len(ids) for ids in result[f"input_ids_{side}"]]
    return result


@adapter
def rm_collate(inputs: Case, params: Case) -> Any:
    features, multiple = inputs["features"], params["pad_to_multiple_of"]
    sides = {side: [feature.get(f"input_ids_{side}") for feature in features] for side in ("chosen", "rejected")}
    if any(ids is None for rows in sides.values() for ids in rows):
        raise UserError("both sides are needed")
    if any(f"attention_mask_{side}" not in feature for side in sides for feature in features):
        raise UserError("attention masks are needed")
    batch: Case = {"return_loss": True}
    for side, rows in sides.items():
        side_batch = padded(rows, params["pad_token_id"], multiple=multiple)
        batch |= {f"{name}_{side}": side_batch[name] for name in ("input_ids", "attention_mask")}
    dtype = None
    for name, ours in (("chosen_probs", "p_chosen"), ("margin", "margin")):
        # All of our rows have a column or none has; the release looks at the last row alone.
        having = [feature for feature in features if name in feature] if name in features[-1] else []
        if having:
            rows = [{"chosen_input_ids": [1], "rejected_input_ids": [1], ours: feature[name]} for feature in having]
            batch[name] = PairCollator(0)(rows)[ours]
            dtype = str(batch[name].dtype)
    return {"batch": batch, "target_dtype": dtype}


@adapter
def rm_loss(inputs: Case, params: Case) -> Any:
    if inputs["chosen_probs"] is None:
        raise UserError("chosen_probs is needed")
    chosen, rejected = (vector(inputs[f"rewards_{side}"], grad=True) for side in ("chosen", "rejected"))
    margin = None if inputs["margin"] is None else vector(inputs["margin"])
    sides = (side.squeeze(-1) for side in (chosen, rejected))
    losses = MMPOReward(batch_targets=params["target_shape"] == "B")(
        RewardPairs(*sides, vector(inputs["chosen_probs"]), margin)
    )
    gradients = torch.autograd.grad(losses.mean(), [chosen, rejected])
    return {
        "loss": losses.mean().item(),
        "grad_rewards_chosen": gradients[0],
        "grad_rewards_rejected": gradients[1],
    }


@adapter
def rm_eval(inputs: Case, params: Case) -> Any:
    chosen, rejected = (np.array(inputs[f"rewards_{side}"])[:, 0] for side in ("chosen", "rejected"))
    wins = sigmoid(chosen - rejected)
    return {
        "preferences": np.stack([wins, sigmoid(rejected - chosen)], axis=1),
        "labels": [0.0] * len(chosen),
        "accuracy": released_accuracy(chosen - rejected),
    }


@adapter
def seqcls_pool(inputs: Case, params: Case) -> Any:
    return {"pooled_index": pooled_index(torch.tensor(inputs["input_ids"]), params["pad_token_id"], "first_pad")}


@adapter
def rewardbench_sections(inputs: Case, params: Case) -> Any:
    scores = rewardbench.section_scores({**inputs["subsets"], **(inputs["prior_sets"] or {})})
    return {"sections": scores.sections, "average": scores.average, "prior_sets": scores.prior_sets}


@adapter
def rewardbench_logps(inputs: Case, params: Case) -> Any:
    return {"logps": scores_of_logits(vector(inputs["logits"]), inputs["labels"], params["ref_free_norm"])}


@adapter
def rewardbench_dpo_score(inputs: Case, params: Case) -> Any:
    free = params["reference_free"]
    policy = scores_of_logits(
        vector(inputs["policy_logits"]), inputs["labels"], params["ref_free_norm"] if free else "sum"
    ).chunk(2)
    if free:
        chosen, rejected = policy
    else:
        reference = scores_of_logits(vector(inputs["reference_logits"]), inputs["labels"], "sum").chunk(2)
        sides = (Responses(own, ref_logps=ref) for own, ref in zip(policy, reference, strict=True))
        result = MMPO(beta=1.0)(Pairs(*sides))
        chosen, rejected = result.chosen_rewards, result.rejected_rewards
    names = [f"{number}" for number in range(len(chosen))]
    wins = rewardbench.subset_accuracies(names, (chosen - rejected).tolist())
    return {"scores_chosen": chosen, "scores_rejected": rejected, "results": [int(wins[name]) for name in names]}


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
