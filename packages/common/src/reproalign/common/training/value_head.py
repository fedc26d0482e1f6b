"""A scalar value per token beside a causal language model's log-probs, for PPO.

The head is a submodule ``v_head`` of the language model itself: wrappers shard and move it with the rest,
``save_pretrained`` writes it with the rest. A saved folder is read by plain ``transformers``, which passes the two
tensors over, and by TRL's ``AutoModelForCausalLMWithValueHead``, whose names they carry (``v_head.summary.weight`` and
``.bias``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from accelerate.utils import DistributedType
from jaxtyping import Float
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from reproalign.common.errors import UserError
from reproalign.common.logprobs.model import CompletionLogps, causal_lm, install_completion_logps

NAME = "v_head"
_LOGPS = "_reproalign_logps_forward"  # where the language model keeps the forward that answers with log-probs alone


@dataclass
class CompletionValues(CompletionLogps):
    """Log-probabilities of completion tokens, with values.

    Attributes:
        state_values: (tokens,) V(s_t) of the state before each completion token, in the order of ``per_token``.
    """

    state_values: Tensor | None = None


class ValueHead(nn.Module):
    """V(s) = w · h + b on final hidden states; TRL's head without its dropout."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.summary = nn.Linear(hidden_size, 1)

    def forward(self, hidden: Float[Tensor, "*batch hidden"]) -> Float[Tensor, "*batch"]:
        """Return the values, in float32 or better."""
        values: Tensor = self.summary(hidden.to(self.summary.weight.dtype)).squeeze(-1)
        return values if values.dtype == torch.float64 else values.float()


def attach_value_head(model: nn.Module, weights: Path | None = None) -> None:
    """Give a causal language model (or one wrapped by PEFT, which then saves the head with the adapter) a value head.

    Call :func:`install_completion_values` to make it answer; the trainer of unpaired feedback does so itself.

    Args:
        model: changed in place; a head that it has already is replaced.
        weights: a saved folder to read the head from; None: ``nn.Linear``'s random start.

    Raises:
        UserError: if the folder holds no value head of this size.
    """
    base = causal_lm(model)
    head: nn.Module = ValueHead(base.get_output_embeddings().in_features).to(device=base.device, dtype=base.dtype)
    if weights is not None:
        _read(head, weights)
    if isinstance(model, PeftModel):
        config: Any = model.peft_config[model.active_adapter]
        config.modules_to_save = sorted({*(config.modules_to_save or ()), NAME})
        head = ModulesToSaveWrapper(head, model.active_adapter)
        head.set_adapter(model.active_adapter)
    base.add_module(NAME, head)


def has_value_head(model: nn.Module) -> bool:
    """Whether :func:`attach_value_head` was called on ``model``."""
    return isinstance(getattr(causal_lm(model), NAME, None), nn.Module)


def install_completion_values(
    model: nn.Module, *, implementation: str = "chunked", chunk_size: int | None = None
) -> str:
    """Teach a model with a value head to answer ``completion_mask=`` with :class:`CompletionValues`.

    As :func:`~reproalign.common.logprobs.model.install_completion_logps`, which it calls, and which takes the values
    away again when it is called afterwards.
    """
    way = install_completion_logps(model, implementation=implementation, chunk_size=chunk_size)
    base = causal_lm(model)
    base.__dict__[_LOGPS] = base.forward  # in the module, not in a closure: a deep copy must call its own
    base.forward = MethodType(_forward, base)
    return way


def _forward(self: PreTrainedModel, *args: Any, completion_mask: Tensor | None = None, **kwargs: Any) -> Any:
    if completion_mask is None or kwargs.get("head_states") or kwargs.get("statistics") is not None:
        return self.__dict__[_LOGPS](*args, completion_mask=completion_mask, **kwargs)
    kept: list[Tensor] = []
    handle = self.get_decoder().register_forward_hook(lambda module, inputs, output: kept.append(output[0]))
    try:
        logps = self.__dict__[_LOGPS](*args, completion_mask=completion_mask, **kwargs)
    finally:
        handle.remove()
    values = getattr(self, NAME)(kept[0][:, :-1][completion_mask[:, 1:].bool()])
    return CompletionValues(**logps, state_values=values)


def _read(head: nn.Module, folder: Path) -> None:
    found: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            names = [name for name in tensors.keys() if f".{NAME}." in f".{name}"]  # noqa: SIM118 - not a dict
            found |= {name.rpartition(f"{NAME}.")[2]: tensors.get_tensor(name) for name in names}
    try:
        head.load_state_dict(found)
    except RuntimeError as error:
        raise UserError(
            f"{folder} holds no value head of this model (its tensors: {sorted(found) or 'none'}); give the folder "
            "of a model trained with one"
        ) from error


def clip_value_head_separately(trainer: Trainer, v_head_max_grad_norm: float) -> None:
    """Clip the gradients of value head and language model each by a norm of its own.

    The model's is ``trainer.args.max_grad_norm``, which is set to 0 so that the Trainer, which knows but one norm,
    leaves the clipping to a callback before the optimiser's step. The Trainer logs the norm of all gradients together.

    Raises:
        UserError: under DeepSpeed, which clips inside its engine, and for a norm that is not positive.
    """
    if not v_head_max_grad_norm > 0:
        raise UserError(f"v_head_max_grad_norm={v_head_max_grad_norm} must be positive")
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
