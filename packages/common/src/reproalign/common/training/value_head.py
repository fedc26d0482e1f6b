"""Clipping the gradients of a value head separately from those of its language model, for PPO."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from accelerate.utils import DistributedType
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from reproalign.common.errors import UserError
from reproalign.common.models.value_head import NAME


def clip_value_head_separately(trainer: Trainer, v_head_max_grad_norm: float) -> None:
    """Clip the gradients of value head and language model each by a norm of its own.

    The model's is ``trainer.args.max_grad_norm``, which is set to 0 so that the Trainer, which knows but one norm,
    leaves the clipping to a callback before the optimiser's step. The Trainer logs the norm of all gradients together.

    Raises:
        UserError: under DeepSpeed, which clips inside its engine.
    """
    if trainer.accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise UserError("v_head_max_grad_norm cannot be kept under DeepSpeed, which clips all gradients together")
    trainer.add_callback(_SeparateClipping(trainer.args.max_grad_norm, v_head_max_grad_norm))
    trainer.args.max_grad_norm = 0.0


class _SeparateClipping(TrainerCallback):
    def __init__(self, max_grad_norm: float, v_head_max_grad_norm: float) -> None:
        self.norms = (max_grad_norm, v_head_max_grad_norm)

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        assert model is not None  # the Trainer gives it
        for parameters, norm in zip(_groups(model), self.norms, strict=True):
            if norm > 0:
                nn.utils.clip_grad_norm_(parameters, norm)


def _groups(model: nn.Module) -> tuple[Iterator[nn.Parameter], Iterator[nn.Parameter]]:
    def named(of_head: bool) -> Iterator[nn.Parameter]:
        return (value for name, value in model.named_parameters() if (f".{NAME}." in f".{name}") is of_head)

    return named(False), named(True)
