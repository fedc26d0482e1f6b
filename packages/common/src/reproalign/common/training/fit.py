"""From a trainer to a finished run: resume, train, save, evaluate, record."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import (
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME

from reproalign.common.config.model import ModelConfig
from reproalign.common.config.run import BaseRunConfig
from reproalign.common.errors import choose
from reproalign.common.files import put_in_place, write_json
from reproalign.common.launch.plan import check_in_force
from reproalign.common.models.load import merge_adapter
from reproalign.common.records import Run
from reproalign.common.training.checkpoints import ManifestCallback, Stateful, resume_from
from reproalign.common.training.interruption import interruptible
from reproalign.common.training.loss_log import LossLog
from reproalign.common.training.mixed_precision import PrecisionCallback, keep_float32, names
from reproalign.common.training.plan import precision_line, reference_line, resuming_line, training_plan
from reproalign.common.training.reference import AdapterDisabledReference, CachedReference, FrozenReference
from reproalign.common.training.watch import announce, show_progress

FINAL = "model"
MODES: dict[Any, str] = {
    FrozenReference: "copy",
    AdapterDisabledReference: "adapter-disabled",
    CachedReference: "cached",
}


class RecordCallback(TrainerCallback):
    """Copies every log of the trainer to the run's ``metrics.jsonl``, and looks for the metric of the best model."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Record ``logs`` at the current optimiser step."""
        if state.is_world_process_zero and logs:
            self.run.log(state.global_step, logs)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Refuse a ``trainer.metric_for_best_model`` that the evaluation does not measure.

        Raises:
            UserError: naming those that it measures.
        """
        best, metrics = args.metric_for_best_model, kwargs["metrics"]
        if best is not None and f"eval_{best.removeprefix('eval_')}" not in metrics:
            choose("trainer.metric_for_best_model", best, metrics)


def fit(
    trainer: Trainer,
    run: Run,
    config: BaseRunConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    notes: Mapping[str, Any] | None = None,
) -> Path:
    """Train (from the newest good checkpoint if there is one) and save the model to ``<run>/model``.

    Args:
        trainer: ready to train.
        run: the open record.
        config: ``resume``, ``on_bad_checkpoint`` and ``model.lora.merge`` are read.
        tokenizer: saved beside the weights.
        notes: JSON files to save beside the weights: name -> content.

    Returns:
        The folder of the final model, written whole or not at all.

    Raises:
        UserError: if another launch strategy or another precision is in force than was asked for, or for a checkpoint
            that cannot be used.
    """
    check_in_force(config.launch.strategy, trainer.accelerator.distributed_type.value)
    checkpoint = resume_from(run.dir, config.resume, config.on_bad_checkpoint)
    assert trainer.model is not None
    keep_float32(trainer.accelerator, trainer.model)
    losses = LossLog(trainer)
    stateful: list[Stateful] = [losses, trainer] if isinstance(trainer, Stateful) else [losses]
    trainer.add_callback(ManifestCallback(stateful))
    trainer.add_callback(RecordCallback(run))
    trainer.add_callback(PrecisionCallback(trainer, run))
    run.set("resumed_from", checkpoint.name if checkpoint else None)
    show_progress(trainer)
    if run.is_main:
        announce(_about_to(trainer, config, checkpoint))
    if checkpoint:
        for part in stateful:
            part.load_state(checkpoint)
    run.log_again(_logged(checkpoint) if checkpoint else [])
    with interruptible(trainer, run.dir):
        result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    run.set("training", {name: value for name, value in result.metrics.items() if isinstance(value, int | float)})
    folder = save_final(trainer, run.dir, tokenizer, config.model, notes or {})
    if PartialState().is_main_process:
        run.made_weights(FINAL, folder)
    return folder


def _logged(checkpoint: Path) -> list[dict[str, Any]]:
    """Return the rows that were logged up to a checkpoint."""
    history = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).log_history
    return [{"step": row["step"], **row} for row in history]


def _about_to(trainer: Trainer, config: BaseRunConfig, checkpoint: Path | None) -> dict[str, str]:
    """Return what the run is about to do, in words."""
    arguments, model = trainer.args, trainer.model
    assert model is not None
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    count, all_of_it = sum(map(_size, trained)), sum(map(_size, model.parameters()))
    share = "" if count == all_of_it else f" of {all_of_it:,}"
    lines = {
        "model": f"{config.model.name}, {count:,}{share} parameters trained",
        "device": f"{arguments.device} ({config.launch.strategy})",
        "precision": precision_line(names(trained), arguments),
        **training_plan(arguments, trainer.train_dataset, trainer.eval_dataset).lines(),
    }
    reference: Any = getattr(trainer, "reference", None)
    if reference is not None:
        lines["reference"] = reference_line(MODES[type(reference)], config)
    if checkpoint:
        lines["resuming"] = resuming_line(checkpoint, config.resume)
    return lines


def _size(parameter: torch.nn.Parameter) -> int:
    return int(getattr(parameter, "ds_numel", 0) or parameter.numel())  # under ZeRO-3 only a share is here


def save_final(
    trainer: Trainer,
    run_dir: Path,
    tokenizer: PreTrainedTokenizerBase,
    model: ModelConfig,
    notes: Mapping[str, Any],
) -> Path:
    """Save the trained model (adapters merged if asked for), tokenizer and notes; all ranks take part."""
    partial = PartialState()
    folder, temporary = run_dir / FINAL, run_dir / f".{FINAL}.tmp"
    if partial.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
    partial.wait_for_everyone()
    trainer.save_model(str(temporary))
    if partial.is_main_process:
        if model.lora.enabled and model.lora.merge:
            merged = merge_adapter(model, tokenizer, temporary)
            shutil.rmtree(temporary)
            merged.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        for name, content in notes.items():
            write_json(temporary / name, content)
        (temporary / "training_args.bin").unlink(missing_ok=True)  # a pickle; config.yaml says the same
        put_in_place(temporary, folder)
    partial.wait_for_everyone()
    return folder
