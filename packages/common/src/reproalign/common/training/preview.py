"""``--dry-run`` of a verb that trains: rows, tokens, steps, global batch and memory, without weights or a folder."""

from __future__ import annotations

import sys
from typing import Any

import torch
from accelerate import init_empty_weights
from peft import TaskType
from transformers import AutoConfig, AutoModelForCausalLM, TrainingArguments

from reproalign.common.config.launch import LaunchConfig
from reproalign.common.config.model import ModelConfig
from reproalign.common.config.run import BaseRunConfig
from reproalign.common.console import say
from reproalign.common.errors import PreviewedError
from reproalign.common.models.adapters import make_trainable
from reproalign.common.models.load import DTYPES, model_path
from reproalign.common.records import Run
from reproalign.common.text.shown import SHOW
from reproalign.common.training.plan import memory_bytes, training_plan

# Strategy -> which of weights, gradients and moments are divided among the processes.
SHARDED = {
    "fsdp": (True, True, True),
    "zero1": (False, False, True),
    "zero2": (False, True, True),
    "zero3": (True, True, True),
    "zero3-offload": (True, True, True),
}


def preview(
    run: Run,
    config: BaseRunConfig,
    arguments: TrainingArguments,
    train: Any,
    evaluation: Any = None,
    *,
    reference: str = "none",
) -> None:
    """End a dry run, once its rows are ready, with what training on them comes to; do nothing in any other run.

    Args:
        run: the open record.
        config: ``model`` is read.
        arguments: of the training.
        train: its rows.
        evaluation: what is held out, or None.
        reference: mode in which a reference policy is held; ``copy`` is a second model in memory.

    Raises:
        PreviewedError: in a dry run.
    """
    asked = run.record["preview"]
    if asked is None or SHOW.get() is not None:  # tokens are shown where they are ready
        return
    launch = LaunchConfig(**asked)
    lines = training_plan(arguments, train, evaluation, processes=launch.processes).lines()
    lines["memory"] = _memory(config.model, arguments, launch, 2 if reference == "copy" else 1)
    for name, text in lines.items():
        say(f"{name + ':':14}{text}")
    sys.stdout.flush()
    raise PreviewedError


def _memory(model: ModelConfig, arguments: TrainingArguments, launch: LaunchConfig, copies: int) -> str:
    try:
        described = AutoConfig.from_pretrained(model_path(model.name), revision=model.revision)
        with init_empty_weights():
            empty = make_trainable(
                AutoModelForCausalLM.from_config(described), model, TaskType.CAUSAL_LM, dropout="all"
            )
    except (OSError, ValueError, ImportError) as error:
        return f"not known ({type(error).__name__}: the model's configuration cannot be read without its weights)"
    everything = sum(parameter.numel() for parameter in empty.parameters())
    trained = sum(parameter.numel() for parameter in empty.parameters() if parameter.requires_grad)
    held: Any = DTYPES[model.dtype] if model.dtype != "auto" else described.dtype
    wide = arguments.bf16 or arguments.fp16 or not isinstance(held, torch.dtype)  # masters beside autocast
    shares = tuple(launch.processes if divided else 1 for divided in SHARDED.get(launch.strategy, (False,) * 3))
    taken = memory_bytes(
        everything, trained, 4 if wide else torch.empty((), dtype=held).itemsize, copies=copies, sharded=shares
    )
    what = f"{everything:,} parameters" + (f", {trained:,} trained" if trained < everything else "")
    reference = ", the reference's included" if copies > 1 else ""
    return (
        f"{_size(taken)} per process for weights{reference}, gradients and AdamW's moments ({what}); "
        "activations come on top"
    )


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
