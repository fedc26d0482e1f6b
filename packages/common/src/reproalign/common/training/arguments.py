"""``trainer.*`` of a run's configuration as ``transformers.TrainingArguments``."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy

from reproalign.common.config.model import LoadedModelConfig
from reproalign.common.config.run import BaseRunConfig, MeasuringConfig
from reproalign.common.errors import UserError
from reproalign.common.launch.plan import deepspeed_config
from reproalign.common.precision import autocast_dtype
from reproalign.common.training.parts import check_parts

DEFAULTS: dict[str, Any] = {
    "report_to": ["tensorboard"],
    "logging_steps": 10,
    "logging_first_step": True,
    "save_total_limit": 2,  # the newest and the one to fall back to
    "optim": "adamw_torch",
    "remove_unused_columns": False,
}


def training_arguments(
    config: BaseRunConfig, run_dir: Path, kind: type[TrainingArguments] = TrainingArguments, **defaults: Any
) -> TrainingArguments:
    """Build the arguments of a run.

    Precedence: ``trainer.*`` of the configuration, then ``defaults`` of the caller, then :data:`DEFAULTS`.
    Without an accelerator the run is put on the CPU. Build them before any model is loaded: ZeRO-3 shards weights
    while they are read only once these arguments exist.

    Raises:
        UserError: for values that ``kind`` refuses, or of which a Trainer can make nothing.
    """
    import torch

    # torch refuses a whole number among fractions, as in betas of 0 and 0.999.
    fractions = {field.name for field in fields(kind) if isinstance(field.default, float)}
    whole = {name for name, value in config.trainer.items() if isinstance(value, int) and name in fractions}
    given = {**config.trainer, **{name: float(config.trainer[name]) for name in whole}}
    on_cpu = not torch.accelerator.is_available()
    values: dict[str, Any] = {**DEFAULTS, "use_cpu": on_cpu, "dataloader_pin_memory": not on_cpu, **defaults, **given}
    _rename(values, kind)
    values.setdefault("bf16", False)  # TRL's configs turn it on where the machine has it
    compute = autocast_dtype(given)
    packaged = deepspeed_config(config.launch.strategy, config.model.dtype, compute)
    if packaged:
        values["deepspeed"] = packaged
        # The Trainer compares DeepSpeed's bf16 with its own options, of which this one is not about training.
        values.setdefault("bf16_full_eval", config.model.dtype == "bfloat16" and compute is None)
    try:
        arguments = kind(output_dir=str(run_dir), seed=config.seed, data_seed=config.seed, **values)
    except (ValueError, TypeError, NotImplementedError, ImportError, FileNotFoundError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"trainer.* is refused by {kind.__name__}: {reason}") from error
    check_parts(arguments, config.trainer)
    if packaged:
        # While weights are read under ZeRO-3, DeepSpeed is asked for the number of processes before any engine exists.
        from deepspeed.comm import init_distributed

        init_distributed()
    return arguments


def _rename(values: dict[str, Any], kind: type[TrainingArguments]) -> None:
    """Give keys, and what ``kind`` itself presets, the names that newer versions of transformers want."""
    presets = {field.name: field.default for field in fields(kind)}
    for part in ("", "_kwargs"):
        old, new = f"gradient_checkpointing{part}", f"activation_checkpointing{part}"
        if new in presets and new not in values and (value := values.pop(old, presets[old])) is not None:
            values[new] = value


@runtime_checkable
class EvaluationConfig(Protocol):
    """Options of a verb that only measures a model."""

    output_dir: str
    seed: int
    batch_size: int
    trainer: MeasuringConfig

    @property
    def model(self) -> LoadedModelConfig:
        """The model that is measured."""
        ...


def evaluation_arguments(config: EvaluationConfig) -> TrainingArguments:
    """Build the arguments of a trainer that only measures: ``batch_size`` rows at once, nothing reported.

    Raises:
        UserError: as :func:`training_arguments`, and for quantised weights, which no Trainer takes without adapters.
    """
    if config.model.quantization:
        raise UserError(
            f"model.quantization={config.model.quantization}: transformers' Trainer measures no quantised weights; "
            "leave it out"
        )
    trainer = {"per_device_eval_batch_size": config.batch_size, "report_to": [], **asdict(config.trainer)}
    run = BaseRunConfig(output_dir=config.output_dir, seed=config.seed, trainer=trainer)
    return training_arguments(run, Path(config.output_dir))


def check_held_out(arguments: TrainingArguments, held_out: object, remedy: str, *, rows: str = "rows") -> None:
    """Refuse evaluation during training where no rows are held out.

    Args:
        arguments: of the run.
        held_out: rows; None or empty: there are none.
        remedy: what to set, e.g. ``set data.eval_fraction``.
        rows: what messages call them.

    Raises:
        UserError: naming the key.
    """
    assert isinstance(arguments.eval_strategy, IntervalStrategy)  # made of the word that was given
    if arguments.eval_strategy != IntervalStrategy.NO and not held_out:
        raise UserError(f"trainer.eval_strategy={arguments.eval_strategy.value} needs held-out {rows}; {remedy}")
