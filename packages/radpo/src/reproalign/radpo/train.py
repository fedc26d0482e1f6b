"""``radpo train``: any of the ten losses, from rows to a trained model."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from rich.console import Console
from transformers import PreTrainedTokenizerBase, TrainingArguments, set_seed

from reproalign.common.config import ModelConfig
from reproalign.common.data.cache import fingerprint_dataset
from reproalign.common.data.collate import PairCollator, UnpairedCollator
from reproalign.common.data.prepare import check_tokenizer
from reproalign.common.errors import UserError, choose
from reproalign.common.invocation import Invocation
from reproalign.common.models.adapters import Model
from reproalign.common.models.identify import identify_weights
from reproalign.common.models.load import load_causal_lm, load_tokenizer, model_path, reference_weights
from reproalign.common.models.value_head import attach_value_head
from reproalign.common.records import Run
from reproalign.common.training.arguments import training_arguments
from reproalign.common.training.fit import FINAL, fit
from reproalign.common.training.reference import hold_reference, reference_mode
from reproalign.common.training.value_head import clip_value_head_separately
from reproalign.radpo.config import LossConfig, PolicyConfig, TrainConfig
from reproalign.radpo.data import load_examples, prepare_rows
from reproalign.radpo.report import draw, measured_before, print_metrics
from reproalign.radpo.rows import RowRules
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
WITHOUT_REFERENCE = {"sft": "none", "csft": "none", "slic": "zero"}  # loss -> mode of hold_reference


def train(config: TrainConfig, invocation: Invocation) -> None:
    """Load, prepare, fit, evaluate, draw, record."""
    check_loss(config.loss, config.variant)
    _check_schedule(config)
    if config.loss.name == "ppo" and config.model.lora.enabled and config.model.lora.merge:
        raise UserError(
            "model.lora.merge=true would lose PPO's value head, which is saved with the adapter; leave it out"
        )
    kind, trainer_type = LOSSES[config.loss.name]
    start = starting_weights(config.model)
    mode = WITHOUT_REFERENCE.get(config.loss.name) or reference_mode(config, config.reference)
    if mode == "cached" and trainer_type is TokenLevelTrainer:
        raise UserError(
            f"loss={config.loss.name} needs the reference's whole distribution at every token, which is not cached; "
            "set reference.mode=copy, or adapter-disabled with LoRA"
        )
    epochs = _epochs(config)
    # The rows of all epochs stand one after the other in their order, so the Trainer sees one epoch, and no sampler.
    arguments = training_arguments(
        replace(config, trainer={**config.trainer, "num_train_epochs": 1.0}),
        Path(config.output_dir),
        train_sampling_strategy="sequential",
    )
    set_seed(config.seed)  # before the model: adapters and value heads begin at random
    with Run.open(invocation, is_main=arguments.process_index == 0) as run:
        tokenizer = load_tokenizer(start)
        check_tokenizer(tokenizer, chat_template=start.chat_template)
        if config.loss.name == "csft":
            tokens = [config.loss.chosen_control_token, config.loss.rejected_control_token]
            tokenizer.add_special_tokens({"additional_special_tokens": tokens})
        with PartialState().main_process_first():
            rows, pairs = _rows(config, kind, epochs, arguments, tokenizer, run)
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
            schedule_steps=_schedule_steps(config, len(rows)),
            pairs=pairs,
            model=model,
            args=arguments,
            train_dataset=rows,
            eval_dataset=pairs,
            data_collator=collator,
            processing_class=tokenizer,
            logprobs=config.logprobs,
            **({} if reference is None else {"reference": reference}),
            **({"kl_batch": "micro" if config.variant == "released" else "effective"} if kind == "kto" else {}),
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
    if loss.is_cal_risk_distribution_logps and (variant, loss.name) == ("paper", "ra-dpo"):
        raise UserError(
            "loss.is_cal_risk_distribution_logps=true puts quantiles in place of log-probs, which the release alone "
            "does (ERRATA Q2); set variant=released"
        )
    if (variant, loss.name) == ("released", "ra-dpo") and loss.measure != "cvar":
        raise UserError(f"loss.measure={loss.measure}: variant=released knows its own tail alone; set variant=paper")
    risk_measure(loss, variant)


def _check_schedule(config: TrainConfig) -> None:
    if config.warmup_steps < 0:
        raise UserError(f"warmup_steps={config.warmup_steps} must not be negative")
    for key in ("lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio", "train_sampling_strategy"):
        if key in config.trainer:
            raise UserError(
                f"trainer.{key} is not read: the rate follows warmup_steps and a cosine, and rows keep their order"
            )


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


def _rows(
    config: TrainConfig,
    kind: str,
    epochs: int,
    arguments: TrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    run: Run,
) -> tuple[Dataset, Dataset | None]:
    """Return the rows of all epochs, and held-out pairs."""
    examples = load_examples(
        config.data, config.datasets or [config.data.source], seed=config.seed, rejects_dir=run.dir
    )
    for label, facts in examples.provenance.items():
        run.add_fingerprint("data", label, facts.pop("sha256"), **facts)
    rules = RowRules(
        kind=kind,
        variant=config.variant,
        seed=config.seed,
        epochs=epochs,
        batch_size=arguments.per_device_train_batch_size,
        processes=arguments.world_size,
        incomplete=config.rows.incomplete,
        selection=config.rows.selection,
        frac_unique_desirable=config.rows.frac_unique_desirable,
        frac_unique_undesirable=config.rows.frac_unique_undesirable,
        good=config.loss.chosen_control_token,
        bad=config.loss.rejected_control_token,
    )
    rows, counts = prepare_rows(examples.train, tokenizer, config.data, rules, max_rows=config.data.max_rows)
    run.set("rows", {**counts, "epochs": epochs})
    if kind in ("sft", "csft"):
        rows = rows.add_column("label", [True] * len(rows))
    held_out = None
    if str(config.trainer.get("eval_strategy", "no")) != "no" and not examples.evaluation:
        raise UserError(
            "trainer.eval_strategy needs held-out pairs; set data.eval_path, data.eval_split or eval_fraction"
        )
    if examples.evaluation and any(example.pairs for example in examples.evaluation.values()):
        whole = replace(rules, kind="paired", epochs=1, processes=1, incomplete="keep")
        held_out, _ = prepare_rows(
            examples.evaluation, tokenizer, config.data, whole, max_rows=config.data.max_eval_rows
        )
    for name, dataset in (("train rows", rows), ("held-out pairs", held_out)):
        if dataset is not None:
            run.add_fingerprint("data", name, fingerprint_dataset(dataset), rows=len(dataset))
    return rows, held_out


def _policy(config: TrainConfig, start: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> Model:
    # The release imports a function that turns dropout off, and never calls it; SFT keeps it in both variants.
    keeps = config.variant == "released" or config.loss.name in ("sft", "csft")
    model = load_causal_lm(start, dropout="all" if keeps else "none")
    if config.loss.name == "csft" and len(tokenizer) > model.config.get_text_config().vocab_size:
        model.resize_token_embeddings(len(tokenizer))
    if config.loss.name == "ppo":
        attach_value_head(model)
    return model


def _epochs(config: TrainConfig) -> int:
    given = config.trainer.get("num_train_epochs", 1)
    if isinstance(given, bool) or not isinstance(given, int | float) or given != given // 1 or given < 1:
        raise UserError(
            f"trainer.num_train_epochs={given} must be a whole number; trainer.max_steps ends a run earlier"
        )
    if given > 1 and config.rows.incomplete == "keep":
        raise UserError("rows.incomplete=keep is for one epoch: a short batch would shift those of the next epochs")
    for key in ("eval_strategy", "save_strategy", "logging_strategy"):
        if given > 1 and str(config.trainer.get(key)) == "epoch":
            raise UserError(f"trainer.{key}=epoch: all epochs are laid out as one here; give steps")
    return int(given)


def _schedule_steps(config: TrainConfig, rows: int) -> int | None:
    """Return where the cosine ends: the release counts training examples, not steps (ERRATA Q5)."""
    return rows if config.variant == "released" else None


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
    run.set_metrics(evaluations)
    if trainer.pairs is not None:
        print_metrics(evaluations, len(trainer.pairs))
    draw(run.dir)
    Console().print(f"model, record and plots: {run.dir}", highlight=False)
