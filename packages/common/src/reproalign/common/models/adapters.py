"""Low-rank adapters, and dropout in models that are trained."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, TaskType, get_peft_model, prepare_model_for_kbit_training
from torch import nn
from transformers import PreTrainedModel

from reproalign.common.config.model import LoraConfig, ModelConfig
from reproalign.common.errors import UserError, first_line

Model = PreTrainedModel | PeftModel
Dropout = Literal["all", "adapters", "none"]
ATTENTION = "attention_dropout"  # the probability that attention without a dropout module of its own reads

logger = logging.getLogger(__name__)


def dropout_in_force(config: ModelConfig, default: Dropout) -> Dropout:
    """Return which dropout acts in training: what ``model.dropout`` says, or the verb's ``default``.

    A warning names the keys that come to nothing: ``lora.dropout`` beside dropout that is off.
    """
    found: Dropout = default if config.dropout is None else "all" if config.dropout else "none"
    if found == "none" and config.lora.enabled and config.lora.dropout:
        logger.warning(
            "model.lora.dropout=%s has no effect: this run trains without dropout; set model.dropout=true to keep it",
            config.lora.dropout,
        )
    return found


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout probability to 0, so that policy and reference are compared on equal terms."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, ATTENTION, None), float):
            setattr(module, ATTENTION, 0.0)


def dropout_probabilities(model: nn.Module) -> list[float]:
    """Return the distinct probabilities with which a model in training drops activations, in ascending order."""
    found = {module.p for module in model.modules() if isinstance(module, nn.Dropout)}
    found |= {p for module in model.modules() if isinstance(p := getattr(module, ATTENTION, None), float)}
    return sorted(found - {0.0})


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


def make_trainable(model: PreTrainedModel, config: ModelConfig, task: TaskType, *, dropout: Dropout) -> Model:
    """Prepare a loaded model for training: the configured LoRA adapters added, dropout as it is to be.

    Args:
        model: just loaded.
        config: ``dropout``, ``quantization`` and ``lora`` are read.
        task: what PEFT saves the adapter for.
        dropout: what acts where ``config.dropout`` is null: ``all`` (the model's own and the adapters'), ``adapters``
            (theirs alone) or ``none``.

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
    dropout = dropout_in_force(config, dropout)
    if dropout != "all":
        disable_dropout(adapted)  # before the adapters come, which bring their own
    if config.lora.enabled:
        try:
            adapted = get_peft_model(adapted, lora_config(config.lora, task, dropout=dropout != "none"))
        except ValueError as error:
            raise UserError(f"model.lora does not fit '{config.name}': {first_line(error)}") from error
    if config.dropout and not dropout_probabilities(adapted):
        logger.warning("model.dropout=true has no effect: '%s' has no dropout", config.name)
    adapted.train()
    trainable: Model = adapted
    return trainable
