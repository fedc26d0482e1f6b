"""``dtm train``: a model on the rows of a cluster, of several, or on all; the baselines of the paper's main table."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import PeftModel, get_peft_model_state_dict
from rich.table import Table
from transformers import PreTrainedTokenizerBase, TrainingArguments, set_seed

from reproalign.common.console import result_console
from reproalign.common.errors import UserError
from reproalign.common.evaluation.plots import training_curves
from reproalign.common.invocation import Invocation
from reproalign.common.merging.adapter_merge import MANIFEST
from reproalign.common.merging.start import start_manifest
from reproalign.common.models.adapters import Model
from reproalign.common.models.identify import used_weights
from reproalign.common.models.kind import check_language_model
from reproalign.common.models.load import load_causal_lm, load_tokenizer
from reproalign.common.records import Run
from reproalign.common.text.collate import pad_id
from reproalign.common.training.arguments import check_held_out, training_arguments
from reproalign.common.training.fit import fit
from reproalign.common.training.preview import preview
from reproalign.dtm.rules import rules_of
from reproalign.dtm.tokens import TokensConfig, collator, resolved
from reproalign.dtm.train.config import TrainConfig
from reproalign.dtm.train.data import Sources, find_sources, load
from reproalign.dtm.train.mixture import check_mixture
from reproalign.dtm.train.order import ReleasedOrder
from reproalign.dtm.train.regularizer import check_regularizer, make_regularizer
from reproalign.dtm.train.trainer import SupervisedTrainer

SAMPLING = "train_sampling_strategy"  # key of trainer.*: who sets it wants another order than the variant's

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainSettings:
    """What the options come to.

    Attributes:
        sources: files that are read.
        tokens: how rows become token ids.
        normalisation: of the loss.
    """

    sources: Sources
    tokens: TokensConfig
    normalisation: str


def train(config: TrainConfig, invocation: Invocation) -> None:
    """Select, tokenise, fit, measure held-out rows, record; ``<output_dir>/model`` is the adapter, or the model.

    Beside an adapter stands ``adapter_manifest.json`` with the fingerprint of the A that it began at.

    Raises:
        UserError: for a mistake in the options or the files.
    """
    checked = check_train(config)
    config = usable_precision(config)
    rules = rules_of(config.variant)
    unseeded = rules.unseeded_order and SAMPLING not in config.trainer
    defaults: dict[str, Any] = {SAMPLING: "sequential"} if unseeded else {}
    arguments = training_arguments(config, Path(config.output_dir), **defaults)
    with Run.open(invocation, is_main=arguments.process_index == 0) as run:
        tokenizer = load_tokenizer(config.model)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token_id = pad_id(tokenizer)
        with PartialState().main_process_first():
            data = load(config, checked.sources, checked.tokens, tokenizer, run)
        check_held_out(arguments, data.held_out, "set held_out=[FILE], or disperse with data.eval_fraction")
        _warn_of_warmup(arguments, len(data.train))
        preview(run, config, arguments, data.train, data.held_out)
        set_seed(config.init_seed)  # nothing of the cluster may come between this and the adapters' first weights
        model = _model(config, tokenizer)
        manifest = start_manifest(get_peft_model_state_dict(model)) if isinstance(model, PeftModel) else {}
        if run.is_main:
            used_weights(run, "start", config.model.name, config.model.revision)
            run.set("adapter_start", manifest)
        trainer = SupervisedTrainer(
            normalisation=checked.normalisation,
            regularizer=make_regularizer(config.regularizer, model),
            batch_measures=rules.batch_measures,
            logprobs=config.logprobs,
            model=model,
            args=arguments,
            train_dataset=ReleasedOrder(data.train) if unseeded else data.train,
            eval_dataset=data.held_out,
            data_collator=collator(tokenizer, checked.tokens.padding_side),
            processing_class=tokenizer,
        )
        notes = {MANIFEST: manifest} if manifest and not config.model.lora.merge else {}
        fit(trainer, run, config, tokenizer, notes=notes)
        found = trainer.measure(data.held_out) if data.held_out is not None else {}
        if run.is_main:
            _report(run, found)


def check_train(config: TrainConfig) -> TrainSettings:
    """Check what can be checked without rows and model: the options, then the files that they name.

    Raises:
        UserError: naming the key, or the file.
    """
    tokens, normalisation = check_options(config)
    return TrainSettings(find_sources(config), tokens, normalisation)


def check_options(config: TrainConfig) -> tuple[TokensConfig, str]:
    """Check the options alone, for files that need not be there yet.

    Returns:
        How rows become token ids, and the normalisation of the loss, with nothing left open.

    Raises:
        UserError: naming the key.
    """
    rules = rules_of(config.variant)
    tokens, normalisation = resolved(config.tokens, rules.tokens), config.normalisation or rules.normalisation
    check_regularizer(config.regularizer, config.launch.strategy)
    check_mixture(config.replay, config.filter)
    if config.model.chat_template is not None:
        raise UserError("model.chat_template: the rows are put in the Alpaca prompt; leave it out")
    if config.model.dtype == "float16" and not config.model.lora.enabled:
        raise UserError(
            "model.dtype=float16 cannot be trained itself (its gradients cannot be unscaled); set model.dtype=float32 "
            "or bfloat16, or model.lora.enabled=true, whose adapters are float32"
        )
    return tokens, normalisation


def usable_precision(config: TrainConfig) -> TrainConfig:
    """Return ``config`` in float32 if it asks for float16 on a machine without an accelerator, and say so."""
    trainer = dict(config.trainer)
    half = config.model.dtype == "float16" or bool(trainer.get("fp16"))
    if not half or torch.accelerator.is_available():
        return config
    logger.warning("float16 needs an accelerator, and there is none: this run computes in float32")
    trainer.pop("fp16", None)
    dtype = "float32" if config.model.dtype == "float16" else config.model.dtype
    return replace(config, model=replace(config.model, dtype=dtype), trainer=trainer)


def _model(config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> Model:
    check_language_model(config.model)
    model = load_causal_lm(config.model)
    vocabulary = model.config.get_text_config().vocab_size
    if len(tokenizer) > vocabulary:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} tokens, '{config.model.name}' only {vocabulary}; leave out "
            "model.tokenizer, or give one of the model's"
        )
    return model


def _warn_of_warmup(arguments: TrainingArguments, rows: int) -> None:
    """Warn of a rate that never reaches its peak (a LIMA sub-model has 48 steps, the published warm-up 100)."""
    batches = math.ceil(rows / (arguments.per_device_train_batch_size * arguments.world_size))
    steps = math.ceil(batches / arguments.gradient_accumulation_steps) * arguments.num_train_epochs
    total = arguments.max_steps if arguments.max_steps > 0 else math.ceil(steps)
    warmup = arguments.get_warmup_steps(total)
    if warmup >= total and arguments.process_index == 0:
        logger.warning(
            "trainer.warmup_steps is %d, and the run has %d steps: the learning rate never reaches its peak",
            warmup,
            total,
        )


def _report(run: Run, found: dict[str, Any]) -> None:
    counts = run.record["rows"]
    table = Table("rows", "", header_style="bold")
    for name, value in counts.items():
        table.add_row(name.replace("_", " "), f"{value:,}")
    if found:
        run.set_metrics({f"eval_{name}": value for name, value in found.items()})
        table.add_section()
        for name, value in found.items():
            table.add_row(f"held-out {name}", f"{value:.4f}")
    console = result_console()
    console.print(table)
    training_curves(run.rows, run.dir / "plots" / "training.png", ("loss", "token_loss", "grad_norm"))
    console.print(f"model, record and plots: {run.dir}")
