"""``ama align dpo``: direct preference optimisation, the checkpoint chosen by the loss on held-out pairs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from reproalign.ama.align.config import DPOConfig
from reproalign.ama.align.objective import DPO
from reproalign.ama.align.pairs import report
from reproalign.common.errors import UserError
from reproalign.common.generation.asking import asking_tokenizer
from reproalign.common.invocation import Invocation
from reproalign.common.models.kind import check_language_model
from reproalign.common.text.pairs import tokenize_pairs
from reproalign.common.text.prompts import prompt_text
from reproalign.common.text.render import render_pairs
from reproalign.common.text.templates import SEPARATORS, check_separator
from reproalign.common.text.tokenize import check_lengths
from reproalign.common.training.fit import fit
from reproalign.common.training.hold_reference import reference_mode
from reproalign.common.training.pairs import PairTrainer
from reproalign.common.training.stages import open_training, pair_trainer, read_pairs

OWN = ("load_best_model_at_end", "metric_for_best_model", "greater_is_better")  # of trainer.*: what select_best sets


def dpo(config: DPOConfig, invocation: Invocation) -> None:
    """Read, tokenise, fit, keep the best evaluation's checkpoint, record; ``<output_dir>/model`` is what is kept.

    Raises:
        UserError: for a mistake in the options or the rows.
    """
    check_options(config)
    check_language_model(config.model)
    with open_training(config, invocation, **_selection(config)) as (run, arguments):
        tokenizer = asking_tokenizer(config.model, config.layout)
        train, held_out = read_pairs(config, run, tokenizer, lambda rows, split: tokenized(rows, tokenizer, config))
        if config.select_best and held_out is None:
            raise UserError(
                "select_best needs held-out pairs; set data.sets.NAME.eval_path=FILE or data.eval_fraction, or "
                "select_best=false"
            )
        trainer = pair_trainer(
            *(DPO(beta=config.beta), config, config.reference, run, arguments, tokenizer, train, held_out),
            dropout="adapters",
            weights="start",
        )
        fit(trainer, run, config, tokenizer)
        if run.is_main and config.select_best:
            run.set("selected", _selected(trainer))
        assert held_out is None or isinstance(trainer.eval_dataset, Dataset)
        report(run, trainer, trainer.eval_dataset)  # with what was cached of the reference


def check_options(config: DPOConfig) -> None:
    """Check what can be checked without rows and model.

    Raises:
        UserError: naming the key.
    """
    check_separator(config.layout, config.response_separator)
    check_lengths(config.text.max_length, config.text.max_prompt_length)
    reference_mode(config, config.reference)
    if not config.select_best and config.evaluations_per_epoch != DPOConfig.evaluations_per_epoch:
        raise UserError("evaluations_per_epoch is of select_best=true; remove it, or set trainer.eval_strategy")
    if config.layout != "chat" and config.text.system_message not in (None, "auto"):
        raise UserError(f"text.system_message is for layout=chat; layout={config.layout} has no system turns")
    for key in OWN:
        if config.select_best and key in config.trainer:
            raise UserError(f"trainer.{key} is set by select_best; remove it, or set select_best=false")


def tokenized(records: Dataset, tokenizer: PreTrainedTokenizerBase, config: DPOConfig) -> Dataset:
    """Render pairs in the layout of ``config`` and tokenise them; pairs of plain text stay as they are."""
    if config.layout == "chat":
        texts = render_pairs(records, tokenizer, config.text, config.data, generation=True)
    else:
        separator = SEPARATORS[config.response_separator]

        def lay_out(record: Mapping[str, Any]) -> dict[str, str]:
            if isinstance(record["prompt"], str):
                return {name: record[name] for name in ("prompt", "chosen", "rejected")}
            prompt = prompt_text(tokenizer, record["prompt"], config.layout)
            sides = {name: f"{separator}{record[name][-1]['content']}" for name in ("chosen", "rejected")}
            return {"prompt": prompt, **sides}

        columns = ("prompt", "chosen", "rejected")
        rows = [{**{k: v for k, v in record.items() if k not in columns}, **lay_out(record)} for record in records]
        texts = Dataset.from_list(rows)
    return tokenize_pairs(texts, tokenizer, config.text, config.data)


def _selection(config: DPOConfig) -> dict[str, Any]:
    """Return what evaluates and saves as often as is asked for, by shares of all steps."""
    if not config.select_best:
        return {}
    evaluations = config.evaluations_per_epoch * float(config.trainer.get("num_train_epochs", 3))
    share = 1 / evaluations if evaluations > 1 else None
    steps = {"eval_steps": share, "save_steps": share} if share else {}
    when = "steps" if share else "epoch"
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "greater_is_better": False}
    return {"eval_strategy": when, "save_strategy": when, **steps, **best}


def _selected(trainer: PairTrainer) -> dict[str, Any]:
    """Return step, epoch and loss of the evaluation whose checkpoint was kept."""
    step = trainer.state.best_global_step
    found = (log for log in trainer.state.log_history if log.get("step") == step and "eval_loss" in log)
    log = next(found, {})
    return {"step": step, "epoch": log.get("epoch"), "eval_loss": log.get("eval_loss")}
