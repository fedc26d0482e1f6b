"""``ama align sft``: fine-tuning on dialogues, texts or selected responses; the forgetting baselines are options."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.table import Table
from torch import nn
from transformers import EarlyStoppingCallback, set_seed

from reproalign.ama.align.averaging import Averaging
from reproalign.ama.align.config import SFTConfig
from reproalign.ama.align.rows import find_files
from reproalign.ama.align.sft_data import load
from reproalign.ama.align.sft_options import SFTSettings, check_options
from reproalign.ama.align.trainer import Distillation, ForgettingTrainer
from reproalign.ama.align.weight_penalty import WeightPenalty
from reproalign.common.config.model import ReferenceConfig
from reproalign.common.console import result_console, say
from reproalign.common.errors import UserError
from reproalign.common.evaluation.plots import training_curves
from reproalign.common.generation.asking import asking_tokenizer
from reproalign.common.invocation import Invocation
from reproalign.common.models.adapters import Model
from reproalign.common.models.forward import unwrap_peft
from reproalign.common.models.identify import used_weights
from reproalign.common.models.kind import check_language_model
from reproalign.common.models.load import load_causal_lm, load_reference
from reproalign.common.records import Run
from reproalign.common.text.collate import RowCollator
from reproalign.common.training.arguments import check_held_out, training_arguments
from reproalign.common.training.fit import fit
from reproalign.common.training.preview import preview
from reproalign.common.training.reference import AdapterDisabledReference, FrozenReference


def sft(config: SFTConfig, invocation: Invocation) -> None:
    """Read, tokenise, fit, measure what is held out, record; ``<output_dir>/model`` is the model, or its adapter.

    Raises:
        UserError: for a mistake in the options or the files.
    """
    checked = check_options(config)
    for key, files in (("rows", config.rows), ("eval_rows", config.eval_rows), ("replay.rows", config.replay.rows)):
        find_files(files, key)
    check_language_model(config.model)
    arguments = training_arguments(config, Path(config.output_dir), **_stopping_defaults(config))
    with Run.open(invocation, is_main=arguments.process_index == 0) as run:
        tokenizer = asking_tokenizer(config.model, config.layout)
        with PartialState().main_process_first():
            data = load(config, checked.text, tokenizer, run)
        check_held_out(arguments, data.held_out, "set eval_rows=[FILE] or eval_fraction")
        preview(run, config, arguments, data.train, data.held_out)
        set_seed(config.seed)  # before the model: adapters begin at random
        model = load_causal_lm(config.model)
        if run.is_main:
            used_weights(run, "start", config.model.name, config.model.revision)
            run.set("penalty", {"name": config.penalty.name, "weight": config.penalty.weight, **_facts(checked)})
        if checked.distance is not None:
            _check_positions(model, max(map(len, data.train["input_ids"])))
        averaging = None if config.averaging.name == "none" else Averaging(config.averaging, model)
        assert isinstance(tokenizer.pad_token_id, int)  # asking_tokenizer has set it
        trainer = ForgettingTrainer(
            normalisation=checked.normalisation,
            penalty=_penalty(config, checked),
            averaging=averaging,
            logprobs=config.logprobs,
            model=model,
            args=arguments,
            train_dataset=data.train,
            eval_dataset=data.held_out,
            data_collator=RowCollator(tokenizer.pad_token_id, multiple_of=8 if checked.distance is None else 1),
            processing_class=tokenizer,
        )
        if config.early_stopping.patience is not None:
            trainer.add_callback(EarlyStoppingCallback(config.early_stopping.patience, config.early_stopping.threshold))
        fit(trainer, run, config, tokenizer)
        found = trainer.evaluate()["eval_loss"] if data.held_out is not None else None
        if run.is_main:
            _report(run, trainer, found)


def _stopping_defaults(config: SFTConfig) -> dict[str, Any]:
    if config.early_stopping.patience is None:
        return {}
    strategy = config.trainer.get("eval_strategy", "epoch")
    often = {"save_steps": config.trainer["eval_steps"]} if "eval_steps" in config.trainer else {}
    return {
        **often,
        "eval_strategy": strategy,
        "save_strategy": strategy,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
    }


def _check_positions(model: Model, longest: int) -> None:
    """Refuse rows that leave no place for the position after their last token, where positions are learned."""
    base = unwrap_peft(model)
    tables = [module for module in base.modules() if isinstance(module, nn.Embedding)]
    limit = getattr(base.config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and longest >= limit and any(table is not base.get_input_embeddings() for table in tables):
        raise UserError(
            f"a row has {longest} tokens, the model's positions end at {limit}, and a penalty on distributions looks "
            f"one further; set block_size or max_length to {limit - 1}"
        )


def _penalty(config: SFTConfig, checked: SFTSettings) -> WeightPenalty | Distillation | None:
    if checked.distance is None:
        return checked.weights
    assert config.penalty.weight is not None  # check_penalty
    adapters = config.model.lora.enabled
    reference = (
        AdapterDisabledReference() if adapters else FrozenReference(load_reference(config.model, ReferenceConfig()))
    )
    return Distillation(config.penalty.weight, *checked.distance, reference)


def _facts(checked: SFTSettings) -> dict[str, Any]:
    if checked.weights is not None:
        return {name: getattr(checked.weights, name) for name in ("order", "factor", "mean", "root")}
    return {} if checked.distance is None else dict(zip(("statistic", "reduction"), checked.distance, strict=True))


def _report(run: Run, trainer: ForgettingTrainer, loss: float | None) -> None:
    table = Table("", "", show_header=False)
    for name, value in run.record["rows"].items():
        table.add_row(name.replace("_", " "), f"{value:,}")
    metrics = {"train_loss": float(run.record["training"]["train_loss"])}
    if loss is not None:
        metrics |= {"eval_loss": loss, "eval_perplexity": math.exp(min(loss, 700.0))}
    run.set_metrics(metrics)
    for name, value in metrics.items():
        table.add_row(name.replace("eval_", "held-out ").replace("_", " "), f"{value:.4f}")
    best = trainer.state.best_model_checkpoint
    if best is not None:
        run.set("best_checkpoint", Path(best).name)
        table.add_row("best checkpoint", Path(best).name)
    result_console().print(table)
    training_curves(run.rows, run.dir / "plots" / "training.png", ("loss", "penalty", "grad_norm"))
    say(f"model, record and plots: {run.dir}")
