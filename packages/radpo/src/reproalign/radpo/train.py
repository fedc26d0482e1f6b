"""``radpo train``: any of the ten losses, from rows to a trained model."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import PartialState
from rich.console import Console
from transformers import PreTrainedTokenizerBase, TrainingArguments, set_seed

from reproalign.common.config import ModelConfig
from reproalign.common.errors import UserError, choose
from reproalign.common.invocation import Invocation
from reproalign.common.models.adapters import Dropout, Model
from reproalign.common.models.identify import identify_weights
from reproalign.common.models.load import load_causal_lm, load_tokenizer, model_path, reference_weights
from reproalign.common.models.value_head import DetachedValueHead, attach_value_head
from reproalign.common.records import Run
from reproalign.common.text.collate import PairCollator, UnpairedCollator
from reproalign.common.text.templates import check_tokenizer
from reproalign.common.training.arguments import training_arguments
from reproalign.common.training.fit import FINAL, fit, metric_rows
from reproalign.common.training.reference import hold_reference, reference_mode
from reproalign.common.training.value_head import clip_value_head_separately
from reproalign.radpo.config import LossConfig, PolicyConfig, ReleasedConfig, TrainConfig, measure_name
from reproalign.radpo.released import TEMPLATES
from reproalign.radpo.report import draw, measured_before, print_metrics, second_half
from reproalign.radpo.report import evaluations as logged_evaluations
from reproalign.radpo.trainer import (
    CompletionTrainer,
    ExampleTrainer,
    MeasureBefore,
    PairLossTrainer,
    RadpoTrainer,
    TokenLevelTrainer,
    risk_measure,
    token_level_trainer,
)
from reproalign.radpo.training_rows import epochs, read_rows, schedule

# Loss -> kind of rows, trainer.
LOSSES: dict[str, tuple[str, type[RadpoTrainer]]] = {
    "sft": ("sft", CompletionTrainer),
    "csft": ("csft", CompletionTrainer),
    "dpo": ("paired", PairLossTrainer),
    "cdpo": ("paired", PairLossTrainer),
    "slic": ("paired", PairLossTrainer),
    "kto": ("kto", ExampleTrainer),
    "kto-zero": ("unpaired", ExampleTrainer),
    "ppo": ("unpaired", ExampleTrainer),
    "tdpo": ("paired", TokenLevelTrainer),
    "ra-dpo": ("paired", TokenLevelTrainer),
}
VALUE_HEAD_DROPOUT = 0.1  # the release's, while a policy is in training mode
WITHOUT_REFERENCE = {"sft": "none", "csft": "none", "slic": "zero"}  # loss -> mode of hold_reference


def train(config: TrainConfig, invocation: Invocation) -> None:
    """Load, prepare, fit, evaluate, draw, record."""
    check_loss(config.loss, config.variant)
    _check_schedule(config)
    _check_released(config)
    if config.loss.name == "ppo" and config.model.lora.enabled and config.model.lora.merge:
        raise UserError(
            "model.lora.merge=true would lose PPO's value head, which is saved with the adapter; leave it out"
        )
    kind, trainer_type = LOSSES[config.loss.name]
    start = with_template(starting_weights(config.model), config.variant)
    mode = WITHOUT_REFERENCE.get(config.loss.name) or reference_mode(config, config.reference)
    if mode == "cached" and trainer_type is TokenLevelTrainer:
        raise UserError(
            f"loss={config.loss.name} needs the reference's whole distribution at every token, which is not cached; "
            "set reference.mode=copy, or adapter-disabled with LoRA"
        )
    epochs(config)
    # The rows of all epochs stand one after the other in their order, so the Trainer sees one epoch, and no sampler.
    arguments = training_arguments(
        replace(config, trainer={**config.trainer, "num_train_epochs": 1.0}),
        Path(config.output_dir),
        train_sampling_strategy="sequential",
    )
    _check_ppo(config, arguments)
    set_seed(config.seed)  # before the model: adapters and value heads begin at random
    with Run.open(invocation, is_main=arguments.process_index == 0) as run:
        tokenizer = load_tokenizer(start)
        check_tokenizer(tokenizer, chat_template=start.chat_template)
        if config.loss.name == "csft":
            tokens = [config.loss.chosen_control_token, config.loss.rejected_control_token]
            tokenizer.add_special_tokens({"additional_special_tokens": tokens})
        with PartialState().main_process_first():
            found = read_rows(config, kind, arguments, tokenizer, run)
        rows, pairs = found.rows, found.held_out
        pad = tokenizer.pad_token_id
        assert isinstance(pad, int)  # check_tokenizer has set it
        collator: Any = PairCollator(pad) if kind == "paired" else UnpairedCollator(pad)
        reference = None
        if mode != "none":
            reference, rows, pairs = hold_reference(mode, config, config.reference, rows, pairs, pad, start=start)
        model = _policy(config, start, tokenizer)
        if run.is_main:
            roles = {"policy": (start.name, start.revision)}
            if mode in ("copy", "cached"):
                roles["reference"] = reference_weights(start, config.reference)
            for role, (name, revision) in roles.items():
                run.add_fingerprint("weights", role, identify_weights(name, revision), name=name, revision=revision)
        if trainer_type is TokenLevelTrainer:
            trainer_type = token_level_trainer(config.loss, config.variant)
        trainer = trainer_type(
            loss=config.loss,
            variant=config.variant,
            warmup_steps=config.warmup_steps,
            schedule=schedule(config, found.length),
            accumulation=config.released.accumulation,
            pairs=pairs,
            pairs_per_pass=found.pairs_per_pass,
            model=model,
            args=arguments,
            train_dataset=rows,
            eval_dataset=pairs,
            data_collator=collator,
            processing_class=tokenizer,
            logprobs=config.logprobs,
            **({} if reference is None else {"reference": reference}),
            **({"kl_batch": "process" if config.variant == "released" else "effective"} if kind == "kto" else {}),
        )
        if config.loss.name == "ppo":
            clip_value_head_separately(trainer, config.loss.v_head_max_grad_norm)
        _run(trainer, run, config, tokenizer)


def check_loss(loss: LossConfig, variant: str) -> None:
    """Refuse parameters that their loss cannot have.

    Raises:
        UserError: naming the key, its value and what is allowed.
    """
    choose("variant", variant, ["paper", "released"])
    choose("loss.name", loss.name, LOSSES)
    positive = {"beta": [*LOSSES.keys() - {"sft", "csft", "ppo"}], "critic_coef": ["ppo"], "KL_coef": ["ppo"]}
    if loss.second_form:
        positive["alpha"] = ["tdpo", "ra-dpo"]
    for key, names in positive.items():
        value = getattr(loss, key)
        if loss.name in names and not (math.isfinite(value) and value > 0):
            raise UserError(f"loss.{key}={value} must be positive")
    ranges = {
        "epsilon": ("cdpo", 0.0, 0.5, "in [0, 0.5)"),
        "cliprange": ("ppo", 0.0, 1.0, "between 0 and 1"),
        "gamma": ("ppo", 0.0, 1.0, "in [0, 1]"),
        "lam": ("ppo", 0.0, 1.0, "in [0, 1]"),
    }
    for key, (name, low, high, said) in ranges.items():
        value = getattr(loss, key)
        outside = not low <= value <= high or (key == "epsilon" and value == high) or (key == "cliprange" and not value)
        if loss.name == name and outside:
            raise UserError(f"loss.{key}={value} must be {said}")
    for key in ("desirable_weight", "undesirable_weight", "lambda_coef"):
        if getattr(loss, key) < 0:
            raise UserError(f"loss.{key}={getattr(loss, key)} must not be negative")
    measure = measure_name(loss, variant)
    if loss.is_cal_risk_distribution_logps and measure not in (None, "released_tail"):
        raise UserError(
            f"loss.is_cal_risk_distribution_logps=true puts the quantiles of released_tail in place of log-probs "
            f"(ERRATA Q2), and the measure is {measure}; set loss.measure=released_tail"
        )
    risk_measure(loss, variant)


def _check_schedule(config: TrainConfig) -> None:
    if config.warmup_steps < 0:
        raise UserError(f"warmup_steps={config.warmup_steps} must not be negative")
    for key in ("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio", "train_sampling_strategy"):
        if key in config.trainer:
            raise UserError(
                f"trainer.{key} is not read: the rate follows warmup_steps and a cosine, and rows keep their order"
            )


def _check_released(config: TrainConfig) -> None:
    if config.released.processes < 1 or (config.released.accumulation or 1) < 1:
        raise UserError("released.processes and released.accumulation must be at least 1")
    if config.loss.ppo_epochs < 1:
        raise UserError(f"loss.ppo_epochs={config.loss.ppo_epochs} must be at least 1")
    if config.variant == "released":
        if config.rows.incomplete == "keep":
            raise UserError("rows.incomplete=keep: the release drops incomplete batches; set variant=paper")
        return
    given = {
        "released": config.released != ReleasedConfig(),
        "rows.clean_up_spaces": config.rows.clean_up_spaces is not None,
        "loss.ppo_epochs": config.loss.ppo_epochs != 1,
    }
    for key, is_given in given.items():
        if is_given:
            raise UserError(f"{key} is read by variant=released alone; leave it out")


def _check_ppo(config: TrainConfig, arguments: TrainingArguments) -> None:
    if config.loss.name != "ppo" or config.variant != "released":
        return
    cut = (arguments.world_size, arguments.gradient_accumulation_steps)
    if cut != (1, 1):
        raise UserError(
            f"variant=released loss=ppo steps on every micro-batch (ERRATA Q18), not on {cut[0]} process(es) x "
            f"{cut[1]} of them; set launch=single and trainer.gradient_accumulation_steps=1 (the release's, which "
            "divides the loss, is released.accumulation)"
        )
    if arguments.save_strategy == "steps" and arguments.save_steps % config.loss.ppo_epochs:
        raise UserError(
            f"trainer.save_steps={arguments.save_steps:g} must be a multiple of loss.ppo_epochs="
            f"{config.loss.ppo_epochs}, since a run cannot go on within a batch's epochs"
        )


def with_template(model: ModelConfig, variant: str) -> ModelConfig:
    """Return ``model`` with the chat template that ``variant`` renders in place of the one it names (ERRATA Q19)."""
    if variant != "released" or model.chat_template not in TEMPLATES:
        return model
    return replace(model, chat_template=TEMPLATES[model.chat_template])


def starting_weights(model: PolicyConfig) -> ModelConfig:
    """Return where training starts: ``load_from`` in place of the model, with its tokenizer.

    Raises:
        UserError: for a folder that is not there or holds no model, or the folder of a run in place of its model.
    """
    name = model.load_from
    if not name:
        return model
    folder = Path(name).expanduser()
    if not folder.is_dir() and (name.count("/") > 1 or name[0] in "./~"):
        raise UserError(f"model.load_from={name}: no such folder; give the model folder of a finished run")
    if (folder / FINAL).is_dir() and not (folder / "config.json").is_file():
        raise UserError(f"model.load_from={name} is the folder of a run; give its model, {folder / FINAL}")
    model_path(name, "model.load_from")
    return replace(model, name=name, revision=None)


def _policy(config: TrainConfig, start: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> Model:
    dropout = dropout_of(config)
    model = load_causal_lm(start, dropout=dropout)
    if config.loss.name == "csft" and len(tokenizer) > model.config.get_text_config().vocab_size:
        model.resize_token_embeddings(len(tokenizer))
    if config.loss.name == "ppo":
        rate = 0.0 if dropout == "none" and config.variant == "released" else VALUE_HEAD_DROPOUT
        attach_value_head(model, head=partial(DetachedValueHead, dropout=rate))
    return model


def dropout_of(config: TrainConfig) -> Dropout:
    """Return which dropout acts in training where ``model.dropout`` is null.

    The release imports a function that turns dropout off, and never calls it; but its PPO's policy is left in
    evaluation mode by the first evaluation (ERRATA Q18, Q24). SFT keeps its dropout in both variants.
    """
    if config.variant == "released":
        return "none" if config.loss.name == "ppo" and config.evaluate_before else "all"
    return "all" if config.loss.name in ("sft", "csft") else "none"


def _run(trainer: RadpoTrainer, run: Run, config: TrainConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    before = None
    if config.evaluate_before and trainer.pairs is not None:
        before = MeasureBefore(trainer)
        trainer.add_callback(before)
    fit(trainer, run, config, tokenizer)
    evaluations = {}
    if before is not None and (found := before.metrics or measured_before(run.dir)):
        evaluations["before"] = found
    if trainer.pairs is not None:
        evaluations["after"] = trainer.measure_pairs()
    if not run.is_main:
        return
    if "after" in evaluations:
        logged = logged_evaluations(metric_rows(run.dir)) | {trainer.state.global_step: evaluations["after"]}
        if half := second_half(logged):
            evaluations["second_half"] = half
    run.set_metrics(evaluations)
    if trainer.pairs is not None:
        print_metrics(evaluations, trainer.pairs_per_pass)
    draw(run.dir)
    Console().print(f"model, record and plots: {run.dir}", highlight=False)
