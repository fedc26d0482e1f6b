"""``--dry-run`` of a verb that trains: what a run says as it starts, and its memory, without weights or a folder."""

from __future__ import annotations

import sys
from pathlib import Path
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
from reproalign.common.training.checkpoints import resume_from
from reproalign.common.training.mixed_precision import name_of
from reproalign.common.training.plan import memory_bytes, precision_line, reference_line, resuming_line, training_plan

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
    reference: str | None = None,
) -> None:
    """End a dry run, once its rows are ready, with what training on them comes to; do nothing in any other run.

    Args:
        run: the open record.
        config: ``model`` is read.
        arguments: of the training.
        train: its rows.
        evaluation: what is held out, in one set or in several by name, or None.
        reference: mode in which a reference policy is held; ``copy`` is a second model in memory. None: the verb has
            none.

    Raises:
        PreviewedError: in a dry run.
        UserError: for a checkpoint from which the run cannot go on.
    """
    asked = run.record["preview"]
    if asked is None or SHOW.get() is not None:  # tokens are shown where they are ready
        return
    launch = LaunchConfig(**asked)
    checkpoint = resume_from(Path(config.output_dir), config.resume, config.on_bad_checkpoint)
    precision, memory = _weights(config.model, arguments, launch, 2 if reference == "copy" else 1)
    lines = {
        "device": f"{arguments.device.type} ({launch.strategy})",
        "precision": precision,
        **training_plan(arguments, train, evaluation, processes=launch.processes).lines(),
        **({} if reference is None else {"reference": reference_line(reference, config)}),
        "resuming": resuming_line(checkpoint, config.resume) if checkpoint else "nothing: from the first step",
        "memory": memory,
    }
    for name, text in lines.items():
        say(f"{name + ':':14}{text}")
    sys.stdout.flush()
    raise PreviewedError


def _weights(model: ModelConfig, arguments: TrainingArguments, launch: LaunchConfig, copies: int) -> tuple[str, str]:
    """Say in which precision the weights are trained, and what memory they take."""
    autocast = arguments.bf16 or arguments.fp16  # masters are float32 beside it
    try:
        described = AutoConfig.from_pretrained(model_path(model.name), revision=model.revision)
        with init_empty_weights():
            empty = make_trainable(
                AutoModelForCausalLM.from_config(described), model, TaskType.CAUSAL_LM, dropout="all"
            )
    except (OSError, ValueError, ImportError) as error:
        why = f"{type(error).__name__}: the model's configuration cannot be read without its weights"
        return precision_line("float32" if autocast else model.dtype, arguments), f"not known ({why})"
    everything = sum(parameter.numel() for parameter in empty.parameters())
    trained = sum(parameter.numel() for parameter in empty.parameters() if parameter.requires_grad)
    held: Any = DTYPES[model.dtype] if model.dtype != "auto" else described.dtype
    wide = autocast or not isinstance(held, torch.dtype)
    shares = tuple(launch.processes if divided else 1 for divided in SHARDED.get(launch.strategy, (False,) * 3))
    taken = memory_bytes(
        everything, trained, 4 if wide else torch.empty((), dtype=held).itemsize, copies=copies, sharded=shares
    )
    what = f"{everything:,} parameters" + (f", {trained:,} trained" if trained < everything else "")
    reference = ", the reference's included" if copies > 1 else ""
    precision = precision_line("float32" if wide or model.lora.enabled else name_of(held), arguments)
    return precision, (
        f"{_size(taken)} per process for weights{reference}, gradients and AdamW's moments ({what}); "
        "activations come on top"
    )


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
