"""Changing a model's own ``forward``: what wrappers (DDP, FSDP, DeepSpeed, autocast) act on.

A changed module keeps its earlier forward under a key of its own, in the module and not in a closure, since a deep copy
of the module must call its own. Changes under different keys can be stacked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from inspect import Parameter, Signature, signature
from types import MethodType
from typing import Any, cast

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel


def unwrap_peft(model: nn.Module) -> PreTrainedModel:
    """Return the model inside a PEFT wrapper, or ``model`` itself."""
    return cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)


def replace_forward(module: nn.Module, key: str, function: Callable[..., Any]) -> None:
    """Let ``function(module, …)`` answer for ``module``; an earlier change under the same key is undone first.

    Args:
        module: changed in place.
        key: of the change, for :func:`earlier_forward` and :func:`restore_forward`.
        function: called with the module before the call's own arguments.
    """
    restore_forward(module, key)

    @wraps(function)
    def answer(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    answer.__signature__ = _open_signature(module.forward)  # type: ignore[attr-defined]
    module.__dict__[_slot(key)] = module.forward
    module.forward = MethodType(answer, module)


def earlier_forward(module: nn.Module, key: str) -> Callable[..., Any]:
    """Return the forward that the change ``key`` replaced."""
    return cast(Callable[..., Any], module.__dict__[_slot(key)])


def restore_forward(module: nn.Module, key: str) -> None:
    """Give ``module`` the forward back that the change ``key`` replaced; nothing happens if there was none."""
    original = module.__dict__.pop(_slot(key), None)
    if original is not None:
        module.forward = original


@contextmanager
def forwards_kept(modules: Iterable[nn.Module], key: str) -> Iterator[None]:
    """Put modules' forwards back at the end of a block as they are now: a change under ``key`` is in force again."""
    before = [(module, module.__dict__.get(_slot(key)), module.forward) for module in modules]
    try:
        yield
    finally:
        for module, earlier, forward in before:
            restore_forward(module, key)
            if earlier is not None:
                module.__dict__[_slot(key)] = earlier
                module.forward = forward


def _open_signature(forward: Callable[..., Any]) -> Signature:
    """The parameters of a bound ``forward``, and any others.

    ``generate`` reads from them what a model takes: without ``position_ids`` prompts padded on the left get the
    positions of their padding, without ``logits_to_keep`` the logits of all tokens of a prompt are made.
    """
    known = [value for value in signature(forward).parameters.values() if value.kind != Parameter.VAR_KEYWORD]
    first, last = Parameter("self", Parameter.POSITIONAL_ONLY), Parameter("kwargs", Parameter.VAR_KEYWORD)
    return Signature([first, *known, last])


def _slot(key: str) -> str:
    return f"_reproalign_{key}_forward"
