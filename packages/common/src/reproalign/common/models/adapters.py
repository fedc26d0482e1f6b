"""Low-rank adapters, and dropout in models that are trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, TaskType, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import PreTrainedModel

from reproalign.common.config import LoraConfig, ModelConfig
from reproalign.common.errors import UserError, first_line

Model = PreTrainedModel | PeftModel


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout probability to 0, so that policy and reference are compared on equal terms."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


def lora_config(config: LoraConfig, task: TaskType, *, dropout: bool = True) -> PeftLoraConfig:
    """Return PEFT's configuration for ``config``, without its dropout if so asked."""
    return PeftLoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout if dropout else 0.0,
        target_modules="all-linear" if config.target_modules == ["all-linear"] else config.target_modules,
        modules_to_save=config.modules_to_save,
        bias="none",
        task_type=task,
    )


def adapter_folder(path: str) -> Path | None:
    """Return the folder if it holds an adapter alone: a run starts from the weights it makes, not from its base's."""
    folder = Path(path)
    alone = (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()
    return folder if alone else None


def make_trainable(model: PreTrainedModel, config: ModelConfig, task: TaskType, *, adapter_dropout: bool) -> Model:
    """Prepare a loaded model for training: its own dropout off, the configured LoRA adapters added.

    Args:
        model: just loaded.
        config: ``quantization`` and ``lora`` are read.
        task: what PEFT saves the adapter for.
        adapter_dropout: keep ``lora.dropout``.

    Raises:
        UserError: for quantised weights without adapters, or adapters that do not fit.
    """
    adapted: Any = model
    if config.quantization:
        if not config.lora.enabled:
            raise UserError(
                f"model.quantization={config.quantization} trains adapters only; set model.lora.enabled=true"
            )
        adapted = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    disable_dropout(adapted)  # before the adapters come, which bring their own
    if config.lora.enabled:
        try:
            adapted = get_peft_model(adapted, lora_config(config.lora, task, dropout=adapter_dropout))
        except ValueError as error:
            raise UserError(f"model.lora does not fit '{config.name}': {first_line(error)}") from error
    adapted.train()
    trainable: Model = adapted
    return trainable
