"""``radpo train``: any of the ten losses, from rows to a trained model."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from accelerate import PartialState
from transformers import PreTrainedTokenizerBase, TrainingArguments, set_seed

from reproalign.common.config.model import LoadedModelConfig, ModelConfig
from reproalign.common.console import say
from reproalign.common.errors import UserError, counted
from reproalign.common.invocation import Invocation
from reproalign.common.models.adapters import Dropout, Model
from reproalign.common.models.identify import used_weights
from reproalign.common.models.kind import check_policies
from reproalign.common.models.load import load_causal_lm, load_tokenizer, model_path, reference_weights
from reproalign.common.models.value_head import DetachedValueHead, attach_value_head
from reproalign.common.records import Run
from reproalign.common.text.collate import PairCollator, UnpairedCollator
from reproalign.common.text.templates import check_tokenizer
from reproalign.common.training.arguments import training_arguments
from reproalign.common.training.fit import fit
from reproalign.common.training.hold_reference import hold_reference, reference_mode
from reproalign.common.training.policy import PolicyTrainer
from reproalign.common.training.preview import preview
from reproalign.common.training.trainers import TRAINERS
from reproalign.common.training.value_head import clip_value_head_separately
from reproalign.radpo.config import PolicyConfig, TrainConfig
from reproalign.radpo.evaluation import MeasureBefore, PairEvaluation
from reproalign.radpo.released import loss_scale
from reproalign.radpo.report import draw, print_metrics, second_half
from reproalign.radpo.report import evaluations as logged_evaluations
from reproalign.radpo.rules import RadpoRules, rules_of
from reproalign.radpo.training_rows import epochs, read_rows, schedule

Config = TypeVar("Config", bound=LoadedModelConfig)
VALUE_HEAD_DROPOUT = 0.1  # the release's, while a policy is in training mode


def train(config: TrainConfig, invocation: Invocation) -> None:
    """Load, prepare, fit, evaluate, draw, record."""
    objective = config.loss
    needs, variant = objective.needs, rules_of(config.variant)
    check_options(config)
    start = with_template(starting_weights(config.model), variant.halos)
    check_policies(start, config.reference)
    mode = "none" if needs.reference == "none" else reference_mode(config, config.reference)
    if mode == "cached" and needs.reference == "distribution":
        raise UserError(
            f"loss={objective.name} needs the reference's whole distribution at every token, which is not cached; "
            "set reference.mode=copy, or adapter-disabled with LoRA"
        )
    # The rows of all epochs stand one after the other in their order, so the Trainer sees one epoch, and no sampler.
    arguments = training_arguments(
        replace(config, trainer={**config.trainer, "num_train_epochs": 1.0}),
        Path(config.output_dir),
        train_sampling_strategy="sequential",
    )
    if variant.ppo_loop and not objective.accumulates:
        _check_own_loop(config, arguments)
    set_seed(config.seed)  # before the model: adapters and value heads begin at random
    with Run.open(invocation, is_main=arguments.process_index == 0) as run:
        tokenizer = load_tokenizer(start)
        check_tokenizer(tokenizer, chat_template=start.chat_template)
        if objective.control_tokens:
            tokenizer.add_special_tokens({"additional_special_tokens": [*objective.control_tokens]})
        with PartialState().main_process_first():
            found = read_rows(config, variant, arguments, tokenizer, run)
        rows, pairs = found.rows, found.held_out
        preview(run, config, arguments, rows, pairs, reference=mode)
        pad = tokenizer.pad_token_id
        assert isinstance(pad, int)  # check_tokenizer has set it
        reference = None
        if mode != "none":
            reference, rows, pairs = hold_reference(mode, config, config.reference, rows, pairs, pad, start=start)
        model = _policy(config, variant, start, tokenizer)
        used_weights(run, "policy", start.name, start.revision)
        if mode in ("copy", "cached"):
            used_weights(run, "reference", *reference_weights(start, config.reference))
        evaluation = PairEvaluation(objective, pairs, found.pairs_per_pass, pad) if pairs is not None else None
        trainer = TRAINERS[needs.rows](
            objective=objective,
            reference=reference,
            logprobs=config.logprobs,
            model=model,
            args=arguments,
            train_dataset=rows,
            eval_dataset=pairs,
            evaluation=evaluation,
            data_collator=PairCollator(pad) if needs.rows == "pairs" else UnpairedCollator(pad),
            processing_class=tokenizer,
            schedule=schedule(config, variant, found.length),
            **_steps(config, variant, arguments),
        )
        if needs.value_head is not None:
            clip_value_head_separately(trainer, needs.value_head)
        _run(trainer, evaluation, run, config, tokenizer)


def _steps(config: TrainConfig, variant: RadpoRules, arguments: TrainingArguments) -> dict[str, Any]:
    """Return a trainer's options of how losses become steps."""
    options: dict[str, Any] = {"decay_all": variant.decay_all}
    if variant.sum_losses:
        here = arguments.world_size * arguments.gradient_accumulation_steps
        options["loss_scale"] = lambda rows: loss_scale(config.loss, rows, here, config.released.accumulation)
    return options | ({"kl_batch": variant.kl_batch} if config.loss.needs.mismatched else {})


def check_options(config: TrainConfig) -> None:
    """Check what can be checked without rows and model.

    Raises:
        UserError: naming the key.
    """
    _check_schedule(config)
    if rules_of(config.variant).across_epochs and config.rows.incomplete == "keep":
        raise UserError("rows.incomplete=keep: the release drops incomplete batches; set variant=paper")
    if config.loss.needs.value_head is not None and config.model.lora.enabled and config.model.lora.merge:
        raise UserError(
            "model.lora.merge=true would lose PPO's value head, which is saved with the adapter; leave it out"
        )
    epochs(config)


def _check_schedule(config: TrainConfig) -> None:
    for key in ("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio", "train_sampling_strategy"):
        if key in config.trainer:
            raise UserError(
                f"trainer.{key} is not read: the rate follows warmup_steps and a cosine, and rows keep their order"
            )


def _check_own_loop(config: TrainConfig, arguments: TrainingArguments) -> None:
    cut = (arguments.world_size, arguments.gradient_accumulation_steps)
    if cut != (1, 1):
        raise UserError(
            f"variant=released loss={config.loss.name} steps on every micro-batch (ERRATA Q18), not on "
            f"{counted(cut[0], 'process')} x {cut[1]} of them; set launch=single and "
            "trainer.gradient_accumulation_steps=1 (the release's, which divides the loss, is released.accumulation)"
        )


def with_template(model: Config, halos: str) -> Config:
    """Return ``model`` with the chat template ``halos`` where it names the one of that name (ERRATA Q19)."""
    return replace(model, chat_template=halos) if model.chat_template == "halos" else model


def starting_weights(model: PolicyConfig) -> ModelConfig:
    """Return where training starts: ``load_from`` in place of the model, with its tokenizer.

    Raises:
        UserError: for a folder that is not there or holds no model, or the folder of a run in place of its model.
    """
    name = model.load_from
    if not name:
        return model
    model_path(name, "model.load_from")
    return replace(model, name=name, revision=None)


def _policy(config: TrainConfig, variant: RadpoRules, start: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> Model:
    dropout = dropout_of(config, variant)
    model = load_causal_lm(start, dropout=dropout)
    if config.loss.control_tokens and len(tokenizer) > model.config.get_text_config().vocab_size:
        model.resize_token_embeddings(len(tokenizer))
    if config.loss.needs.value_head is not None:
        rate = 0.0 if dropout == "none" and variant.ppo_loop else VALUE_HEAD_DROPOUT
        attach_value_head(model, head=partial(DetachedValueHead, dropout=rate))
    return model


def dropout_of(config: TrainConfig, variant: RadpoRules) -> Dropout:
    """Return which dropout acts in training where ``model.dropout`` is null.

    The release imports a function that turns dropout off, and never calls it; but its PPO's policy is left in
    evaluation mode by the first evaluation (ERRATA Q18, Q24). SFT keeps its dropout in both variants.
    """
    if variant.ppo_loop and not config.loss.accumulates and config.evaluate_before:
        return "none"
    return "all" if variant.all_dropout or config.loss.keeps_dropout else "none"


def _run(
    trainer: PolicyTrainer,
    evaluation: PairEvaluation | None,
    run: Run,
    config: TrainConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    if config.evaluate_before and evaluation is not None:
        trainer.add_callback(MeasureBefore(trainer, evaluation))
    fit(trainer, run, config, tokenizer)
    evaluations = {}
    if config.evaluate_before and evaluation is not None and (found := logged_evaluations(run.rows).get(0)):
        evaluations["before"] = found
    if evaluation is not None:
        evaluations["after"] = evaluation.measure(trainer)
    if not run.is_main:
        return
    if "after" in evaluations:
        logged = logged_evaluations(run.rows) | {trainer.state.global_step: evaluations["after"]}
        if half := second_half(logged):
            evaluations["second_half"] = half
    run.set_metrics(evaluations)
    if evaluation is not None:
        print_metrics(evaluations, evaluation.pairs_per_pass)
    draw(run)
    say(f"model, record and plots: {run.dir}")
