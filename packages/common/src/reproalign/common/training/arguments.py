"""``trainer.*`` of a run's configuration as ``transformers.TrainingArguments``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from reproalign.common.config import BaseRunConfig
from reproalign.common.errors import UserError, check_seed, did_you_mean
from reproalign.common.launch.plan import deepspeed_config

# Set elsewhere in the configuration, so that one fact has one name.
OWNED = {
    "output_dir": "output_dir",
    "seed": "seed",
    "data_seed": "seed",
    "resume_from_checkpoint": "resume",
    "remove_unused_columns": "nothing: the collators know their columns",
}

DEFAULTS: dict[str, Any] = {
    "report_to": ["tensorboard"],
    "logging_steps": 10,
    "logging_first_step": True,
    "save_total_limit": 2,  # the newest and the one to fall back to
    "optim": "adamw_torch",
    "remove_unused_columns": False,
}


def check_trainer_keys(given: dict[str, Any], kind: type[TrainingArguments] = TrainingArguments) -> None:
    """Check the keys of ``trainer.*`` against the fields of ``kind``.

    Raises:
        UserError: for a key that ``kind`` lacks, one that is set elsewhere in the configuration, or a word in place of
            a number.
    """
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}
    known = fields.keys()
    for key, value in given.items():
        if key in OWNED:
            raise UserError(f"trainer.{key} is set through {OWNED[key]}; remove it from trainer.*")
        if key not in known:
            hint = did_you_mean(f"trainer.{key}", (f"trainer.{name}" for name in known))
            raise UserError(f"unknown key 'trainer.{key}'{hint}; it must be a field of {kind.__name__}")
        default = fields[key].default
        if isinstance(value, str) and isinstance(default, int | float) and not isinstance(default, bool):
            raise UserError(f"trainer.{key}={value} must be a number")


def training_arguments(
    config: BaseRunConfig, run_dir: Path, kind: type[TrainingArguments] = TrainingArguments, **defaults: Any
) -> TrainingArguments:
    """Build the arguments of a run.

    Precedence: ``trainer.*`` of the configuration, then ``defaults`` of the caller, then :data:`DEFAULTS`.
    Without an accelerator the run is put on the CPU. Build them before any model is loaded: ZeRO-3 shards weights
    while they are read only once these arguments exist.

    Raises:
        UserError: for unknown keys, a seed out of its range, and values that ``kind`` refuses.
    """
    import torch

    given = dict(config.trainer)
    check_trainer_keys(given, kind)
    check_seed(seed=config.seed)
    on_cpu = not torch.accelerator.is_available()
    values: dict[str, Any] = {**DEFAULTS, "use_cpu": on_cpu, **defaults, **given}
    if on_cpu and "bf16" not in given:
        values["bf16"] = False  # TRL's configs turn it on
    packaged = deepspeed_config(config.launch.strategy)
    if packaged:
        values["deepspeed"] = packaged
    try:
        arguments = kind(output_dir=str(run_dir), seed=config.seed, data_seed=config.seed, **values)
    except (ValueError, TypeError, NotImplementedError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"trainer.* is refused by {kind.__name__}: {reason}") from error
    if packaged:
        # While weights are read under ZeRO-3, DeepSpeed is asked for the number of processes before any engine exists.
        from deepspeed.comm import init_distributed

        init_distributed()
    return arguments
