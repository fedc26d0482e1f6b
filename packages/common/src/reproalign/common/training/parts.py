"""The parts that a Trainer makes of its arguments, tried on one weight before a run begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import TorchDynamoPlugin
from torch import nn
from torch.optim import SGD
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks
from transformers.utils import is_liger_kernel_available

from reproalign.common.errors import UserError

LOADER = ("num_workers", "persistent_workers", "prefetch_factor", "multiprocessing_context", "in_order")
OF_TRAINERS = ("every_n_layers", "offload", "selective")  # what transformers and trl take out of torch's options
LOW_RANK = ("galore", "apollo")

# Keys that the Trainer reads only beside others: what they need, and when that is so.
NEEDS: dict[str, tuple[str, Callable[[TrainingArguments], bool]]] = {
    **dict.fromkeys(
        ("load_best_model_at_end", "metric_for_best_model", "greater_is_better"),
        ("trainer.eval_strategy=steps or epoch", lambda arguments: arguments.eval_strategy != "no"),
    ),
    "optim_target_modules": (
        "an optimiser such as trainer.optim=galore_adamw",
        lambda arguments: arguments.optim.startswith(LOW_RANK),
    ),
    "liger_kernel_config": ("trainer.use_liger_kernel=true", lambda arguments: arguments.use_liger_kernel),
    **dict.fromkeys(
        ("project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
        ("trainer.report_to=[trackio]", lambda arguments: "trackio" in (arguments.report_to or ())),
    ),
}


def check_parts(arguments: TrainingArguments, given: Mapping[str, Any]) -> None:
    """Refuse arguments of which a Trainer makes nothing, or of which it can make no tracker, optimiser, schedule …

    The Trainer itself would say so once the model is loaded, or after the first steps.

    Args:
        arguments: of the run.
        given: those that the configuration names, ``trainer.*``.

    Raises:
        UserError: with the keys and what the library says; most often a package is missing.
    """
    for key, (needed, holds) in NEEDS.items():
        if given.get(key) and not holds(arguments):
            raise UserError(f"trainer.{key}={given[key]} needs {needed}; set that, or remove trainer.{key}")
    if arguments.save_strategy == "best" and arguments.metric_for_best_model is None:
        raise UserError("trainer.save_strategy=best needs trainer.metric_for_best_model, e.g. loss")
    with _refused(given, "report_to"):
        for callback in get_reporting_integration_callbacks(arguments.report_to):
            callback()
    with _refused(given, "optim", "adam_"):
        _optimizer(arguments)
    with _refused(given, "lr_scheduler_"):
        kind, optimizer = arguments.lr_scheduler_type, SGD([torch.zeros(1)], lr=arguments.learning_rate)
        steps = max(arguments.max_steps, 1)
        get_scheduler(kind, optimizer, 0, steps, arguments.lr_scheduler_kwargs)  # type: ignore[arg-type]
    with _refused(given, "dataloader_"):
        loader = {name: getattr(arguments, f"dataloader_{name}", None) for name in LOADER}
        DataLoader([0], **{name: value for name, value in loader.items() if value is not None})  # type: ignore[arg-type]
    with _refused(given, "gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
        _checkpointing(arguments)
    with _refused(given, "torch_compile"):
        _compiler(arguments)
    if arguments.use_liger_kernel and not is_liger_kernel_available():
        raise UserError("trainer.use_liger_kernel=true needs the package 'liger-kernel', which is not installed")


def _optimizer(arguments: TrainingArguments) -> None:
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments)
    except ValueError:
        if arguments.optim_target_modules is None and "lomo" not in arguments.optim:
            raise
        return  # it is made for the modules of a model, which is not loaded yet
    kind([nn.Parameter(torch.zeros(1, device=arguments.device))], **options)


def _checkpointing(arguments: TrainingArguments) -> None:
    if arguments.gradient_checkpointing:
        options: Any = arguments.gradient_checkpointing_kwargs or {}
        passed_on = {name: value for name, value in options.items() if name not in OF_TRAINERS}
        checkpoint(nn.Identity(), torch.zeros(1, requires_grad=True), **{"use_reentrant": False, **passed_on})


def _compiler(arguments: TrainingArguments) -> None:
    if arguments.torch_compile:
        chosen = TorchDynamoPlugin(arguments.torch_compile_backend, arguments.torch_compile_mode)  # type: ignore[arg-type]
        torch.compile(nn.Identity(), backend=chosen.backend.value.lower(), mode=chosen.mode)


@contextmanager
def _refused(given: Mapping[str, Any], *beginnings: str) -> Iterator[None]:
    """Name those of the keys that are given in what a library refuses."""
    try:
        yield
    except Exception as error:  # each library has its own: ValueError, TypeError, ImportError, RuntimeError …
        names = [name for name in given if name.startswith(beginnings)] or [f"{beginnings[0]}*"]
        words = " ".join(f"trainer.{name}={given[name]}" if name in given else f"trainer.{name}" for name in names)
        raise UserError(f"{words} is refused: {' '.join(str(error).split())}") from error
