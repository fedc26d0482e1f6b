"""``ama align dpo``: direct preference optimisation, the checkpoint chosen by the loss on held-out pairs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase, set_seed

from reproalign.ama.align.config import DPOConfig
from reproalign.ama.align.objective import DPO
from reproalign.ama.align.pairs import check_evaluation, read_pairs, report
from reproalign.common.errors import UserError
from reproalign.common.generation.asking import asking_tokenizer
from reproalign.common.invocation import Invocation
from reproalign.common.models.identify import used_weights
from reproalign.common.models.kind import check_language_model
from reproalign.common.models.load import load_causal_lm
from reproalign.common.records import Run
from reproalign.common.text.collate import PairCollator
from reproalign.common.text.pairs import tokenize_pairs
from reproalign.common.text.prompts import prompt_text
from reproalign.common.text.render import render_pairs
from reproalign.common.text.shown import used_rows
from reproalign.common.text.templates import SEPARATORS, check_separator
from reproalign.common.text.tokenize import check_lengths
from reproalign.common.training.arguments import training_arguments
from reproalign.common.training.fit import fit
from reproalign.common.training.pairs import PairTrainer
from reproalign.common.training.preview import preview
from reproalign.common.training.reference import hold_reference, reference_mode

OWN = ("load_best_model_at_end", "metric_for_best_model", "greater_is_better")  # of trainer.*: what select_best sets


def dpo(config: DPOConfig, invocation: Invocation) -> None:
    """Read, tokenise, fit, keep the best evaluation's checkpoint, record; ``<output_dir>/model`` is what is kept.

    Raises:
        UserError: for a mistake in the options or the rows.
    """
    check_options(config)
    mode = reference_mode(config, config.reference)
    check_language_model(config.model)
    arguments = training_arguments(config, Path(config.output_dir), **_selection(config))
    set_seed(config.seed)  # before the model: adapters begin at random
    with Run.open(invocation, is_main=arguments.process_index == 0) as run:
        tokenizer = asking_tokenizer(config.model, config.layout)
        data = read_pairs(config.data, config.seed, run)
        train = tokenized(data.train, tokenizer, config)
        held_out = None if data.evaluation is None else tokenized(data.evaluation, tokenizer, config)
        run.set("pairs", {"train": len(train), "evaluation": len(held_out) if held_out is not None else 0})
        used_rows(run, tokenizer, train)
        if config.select_best and held_out is None:
            raise UserError(
                "select_best needs held-out pairs; set data.sets.NAME.eval_path=FILE or data.eval_fraction, or "
                "select_best=false"
            )
        check_evaluation(arguments, held_out)
        assert isinstance(tokenizer.pad_token_id, int)  # asking_tokenizer has set it
        pad_id = tokenizer.pad_token_id
        preview(run, config, arguments, train, held_out, reference=mode)
        reference, train, held_out = hold_reference(mode, config, config.reference, train, held_out, pad_id)
        model = load_causal_lm(config.model, dropout="adapters")
        used_weights(run, "start", config.model)
        trainer = PairTrainer(
            objective=DPO(beta=config.beta),
            reference=reference,
            logprobs=config.logprobs,
            model=model,
            args=arguments,
            train_dataset=train,
            eval_dataset=held_out,
            data_collator=PairCollator(pad_id),
            processing_class=tokenizer,
        )
        fit(trainer, run, config, tokenizer)
        if run.is_main and config.select_best:
            run.set("selected", _selected(trainer))
        report(run, trainer, held_out)


def check_options(config: DPOConfig) -> None:
    """Check what can be checked without rows and model.

    Raises:
        UserError: naming the key.
    """
    check_separator(config.layout, config.response_separator)
    check_lengths(config.text.max_length, config.text.max_prompt_length)
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
