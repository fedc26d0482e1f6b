"""Values of states beside the log-probs of completion tokens, in one forward of a model with a value head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from reproalign.common.config.model import LogprobsConfig
from reproalign.common.logprobs.model import install_completion_logps
from reproalign.common.logprobs.questions import CompletionLogps
from reproalign.common.models.forward import earlier_forward, replace_forward, restore_forward, unwrap_peft
from reproalign.common.models.value_head import NAME

_VALUES = "values"  # the change to a forward


@dataclass
class CompletionValues(CompletionLogps):
    """Log-probabilities of completion tokens, with values.

    Attributes:
        state_values: (tokens,) V(s_t) of the state before each completion token, in the order of ``per_token``.
    """

    state_values: Tensor | None = None


def install_completion_values(model: nn.Module, logprobs: LogprobsConfig | None = None) -> str:
    """Teach a model with a value head to answer ``completion_mask=`` with :class:`CompletionValues`.

    As :func:`~reproalign.common.logprobs.model.install_completion_logps`, which it calls, and which takes the values
    away again when it is called afterwards.
    """
    base = unwrap_peft(model)
    restore_forward(base, _VALUES)
    way = install_completion_logps(model, logprobs)
    replace_forward(base, _VALUES, _forward)
    return way


def _forward(self: PreTrainedModel, *args: Any, completion_mask: Tensor | None = None, **kwargs: Any) -> Any:
    if completion_mask is None or kwargs.get("head_states") or kwargs.get("statistics") is not None:
        return earlier_forward(self, _VALUES)(*args, completion_mask=completion_mask, **kwargs)
    kept: list[Tensor] = []
    handle = self.get_decoder().register_forward_hook(lambda module, inputs, output: kept.append(output[0]))
    try:
        logps = earlier_forward(self, _VALUES)(*args, completion_mask=completion_mask, **kwargs)
    finally:
        handle.remove()
    values = getattr(self, NAME)(kept[0][:, :-1][completion_mask[:, 1:].bool()])
    return CompletionValues(**logps, state_values=values)
