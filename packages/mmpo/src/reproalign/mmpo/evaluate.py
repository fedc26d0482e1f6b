"""``mmpo evaluate``: a policy or a reward model on held-out preferences and on RewardBench-format files."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from datasets import Dataset
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, PreTrainedTokenizerBase

from reproalign.common.config import DataConfig, RunConfig
from reproalign.common.data.collate import PairCollator
from reproalign.common.data.prepare import check_tokenizer, load_evaluation, tokenize_dialogues, tokenize_pairs
from reproalign.common.data.templates import render
from reproalign.common.errors import UserError, choose
from reproalign.common.evaluation.rewardbench import (
    MAX_LENGTH,
    MAX_PROMPT_LENGTH,
    read_rewardbench,
    response_texts,
    section_scores,
    subset_accuracies,
)
from reproalign.common.files import write_json
from reproalign.common.invocation import Invocation
from reproalign.common.models.load import load_causal_lm, load_reward_model, load_tokenizer, model_path
from reproalign.common.records import Run
from reproalign.common.training.arguments import training_arguments
from reproalign.common.training.pairs import PairTrainer
from reproalign.common.training.reference import FrozenReference
from reproalign.mmpo.config import EvaluateConfig, LossConfig, PairRulesConfig
from reproalign.mmpo.prepare import prepare_split
from reproalign.mmpo.report import Rewards, draw, print_metrics
from reproalign.mmpo.trainer import MMPORewardTrainer, MMPOTrainer


def evaluate(config: EvaluateConfig, invocation: Invocation) -> None:
    """Measure accuracy, margins and calibration on the data, and RewardBench's sections if a file is given."""
    kind = _kind(config)
    if kind == "policy" and not config.reference.model:
        raise UserError("a policy's rewards are relative; set reference.model to the model that training started from")
    with Run.open(invocation) as run:
        tokenizer = load_tokenizer(config.model)
        check_tokenizer(tokenizer, chat_template=config.model.chat_template)
        trainer = _trainer(config, kind, tokenizer)
        records, facts = load_evaluation(config.data, rejects_dir=run.dir)
        run.add_fingerprint("data", "evaluation", facts.pop("sha256"), **facts)
        pairs = prepare_split(
            records,
            tokenizer,
            config.data,
            config.target,
            PairRulesConfig(),
            "evaluation",
            config.seed,
            kind == "reward",
        )
        rewards = Rewards(*trainer.rewards(pairs))
        metrics = rewards.metrics(config.n_bins)
        run.set_metrics(metrics)
        print_metrics({Path(config.model.name).name or config.model.name: metrics}, len(pairs))
        draw(run.dir, {kind: rewards}, n_bins=config.n_bins, binning=config.binning)
        if config.rewardbench:
            run.set_metrics({"rewardbench": _rewardbench(config, kind, tokenizer, trainer, run)})
        Console().print(f"record and plots: {run.dir}", highlight=False)


def _kind(config: EvaluateConfig) -> str:
    if choose("kind", config.kind, ["auto", "policy", "reward"]) != "auto":
        return config.kind
    path = model_path(config.model.name)
    try:
        architectures = AutoConfig.from_pretrained(path, revision=config.model.revision).architectures or []
    except (OSError, ValueError) as error:
        raise UserError(f"model.name={config.model.name}: cannot tell policy from reward model; set kind=") from error
    return "reward" if any("SequenceClassification" in name for name in architectures) else "policy"


def _trainer(config: EvaluateConfig, kind: str, tokenizer: PreTrainedTokenizerBase) -> PairTrainer:
    run_config = RunConfig(
        output_dir=config.output_dir,
        seed=config.seed,
        trainer={"per_device_eval_batch_size": config.batch_size, "report_to": [], **config.trainer},
    )
    common: dict[str, Any] = {
        "args": training_arguments(run_config, Path(config.output_dir)),
        "data_collator": PairCollator(tokenizer.pad_token_id),
        "processing_class": tokenizer,
    }
    if kind == "reward":
        return MMPORewardTrainer(model=load_reward_model(config.model, tokenizer), variant=config.variant, **common)
    plain = replace(config.model, lora=replace(config.model.lora, enabled=False))
    return MMPOTrainer(
        model=load_causal_lm(plain),
        loss=LossConfig(beta=config.beta),
        variant=config.variant,
        reference=FrozenReference(load_causal_lm(plain, name=config.reference.model, trainable=False)),
        logprobs=config.logprobs,
        **common,
    )


def _rewardbench(
    config: EvaluateConfig, kind: str, tokenizer: PreTrainedTokenizerBase, trainer: PairTrainer, run: Run
) -> dict[str, Any]:
    rows = read_rewardbench(str(config.rewardbench))
    rewards = Rewards(*trainer.rewards(rewardbench_pairs(rows, tokenizer, kind, config.data)))
    subsets = subset_accuracies([row["subset"] for row in rows], rewards.margins.tolist())
    scores = section_scores(subsets)
    result = {"subsets": subsets, **asdict(scores)}
    table = Table("RewardBench", "accuracy", header_style="bold")
    for name, value in {**scores.sections, "average": scores.average}.items():
        table.add_row(name, f"{100 * value:.2f}")
    table.add_section()
    for name, value in subsets.items():
        table.add_row(name, f"{100 * value:.2f}")
    Console().print(table)
    write_json(run.dir / "rewardbench.json", json.loads(json.dumps(result).replace("NaN", "null")))
    return result


def rewardbench_pairs(
    rows: list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase, kind: str, data: DataConfig
) -> Dataset:
    """Tokenise RewardBench rows as RewardBench does: no system turn, 2,048 tokens, prompts cut to 128 if need be.

    For a policy the rendered prompt is deleted from both full texts; for a reward model the full texts are scored.
    """
    texts = []
    for row in rows:
        prompt = [{"role": "user", "content": row["prompt"]}]
        head = render(tokenizer, prompt)
        wholes = [
            render(tokenizer, [*prompt, {"role": "assistant", "content": row[side]}]) for side in ("chosen", "rejected")
        ]
        sides = response_texts(head, *wholes) if kind == "policy" else tuple(wholes)
        texts.append({"prompt": head, "chosen": sides[0], "rejected": sides[1]})
    special = "released" if tokenizer.bos_token_id is not None and data.special_tokens == "released" else "dedupe"
    rules = DataConfig(
        source="preference",
        max_length=MAX_LENGTH,
        max_prompt_length=MAX_PROMPT_LENGTH,
        boundary="released",
        special_tokens=special,
        cache_dir=data.cache_dir,
    )
    pairs = (tokenize_pairs if kind == "policy" else tokenize_dialogues)(Dataset.from_list(texts), tokenizer, rules)
    return pairs.add_column("p_chosen", [1.0] * len(pairs))  # type: ignore[no-any-return]
