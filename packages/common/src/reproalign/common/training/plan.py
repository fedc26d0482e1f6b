"""What a training run is about to do, computed from its rows and arguments: said before it starts, and by --dry-run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from datasets import Dataset
from transformers import TrainingArguments

from reproalign.common.errors import counted

REFERENCES = {
    "none": "none",
    "copy": "a frozen second model",
    "adapter-disabled": "the policy without its adapters",
    "cached": "log-probs computed beforehand",
}


@dataclass(frozen=True)
class TrainingPlan:
    """How far a run goes, and in which steps.

    Attributes:
        rows: of the training data.
        tokens: in them, of all sequences of a row; None where rows are not tokenised beforehand.
        held_out: rows of the evaluation data.
        steps: optimiser steps in all.
        epochs: passes over the rows in that many steps.
        per_device: rows of one forward pass on one device.
        processes: devices at work.
        accumulation: forward passes per optimiser step.
    """

    rows: int
    tokens: int | None
    held_out: int
    steps: int
    epochs: float
    per_device: int
    processes: int
    accumulation: int

    @property
    def global_batch(self) -> int:
        """Rows per optimiser step."""
        return self.per_device * self.processes * self.accumulation

    def lines(self) -> dict[str, str]:
        """Return the plan in words."""
        tokens = "" if self.tokens is None else f", {self.tokens:,} tokens"
        held_out = f"; {self.held_out:,} held out" if self.held_out else ""
        parts = f"{self.per_device} per device x {counted(self.processes, 'process')} x {self.accumulation} accumulated"
        return {
            "rows": f"{self.rows:,}{tokens}{held_out}",
            "steps": f"{self.steps:,} ({self.epochs:.3g} epochs)",
            "global batch": f"{self.global_batch} ({parts})",
        }


def training_plan(
    arguments: TrainingArguments, train: Any, evaluation: Any = None, *, processes: int | None = None
) -> TrainingPlan:
    """Compute the plan as ``transformers.Trainer`` will count it.

    Args:
        arguments: of the run.
        train: its rows, with a length.
        evaluation: likewise, a mapping of several sets, or None.
        processes: that will share the rows; None: those of ``arguments``.
    """
    shared = processes or arguments.world_size
    micro = arguments.per_device_train_batch_size * shared
    batches = len(train) // micro if arguments.dataloader_drop_last else -(-len(train) // micro)
    per_epoch = max(-(-batches // arguments.gradient_accumulation_steps), 1)
    steps = arguments.max_steps if arguments.max_steps > 0 else math.ceil(arguments.num_train_epochs * per_epoch)
    sets = evaluation.values() if isinstance(evaluation, Mapping) else [] if evaluation is None else [evaluation]
    return TrainingPlan(
        rows=len(train),
        tokens=count_tokens(train),
        held_out=sum(map(len, sets)),
        steps=steps,
        epochs=steps / per_epoch,
        per_device=arguments.per_device_train_batch_size,
        processes=shared,
        accumulation=arguments.gradient_accumulation_steps,
    )


def precision_line(weights: str, arguments: TrainingArguments) -> str:
    """Say in which dtype a run holds what it trains, ``float32``, and in which it computes."""
    autocast = "bfloat16" if arguments.bf16 else "float16" if arguments.fp16 else "no"
    return f"{weights} weights, {autocast} autocast"


def reference_line(mode: str, config: Any) -> str:
    """Say which reference a run compares its policy with.

    Args:
        mode: in which it is held.
        config: of the run; the weights of ``reference.model`` are named if it has such a key.
    """
    model = getattr(getattr(config, "reference", None), "model", None)
    return f"{REFERENCES[mode]}: {model}" if model and mode != "none" else REFERENCES[mode]


def resuming_line(checkpoint: Path, resume: str) -> str:
    """Say from where a run goes on, and why from there."""
    why = "resume names it" if resume not in ("auto", "never") else "it is the newest whole one in that folder"
    return f"from {checkpoint}, because {why}"


def count_tokens(rows: Any) -> int | None:
    """Count the token ids of all columns called ``…input_ids``; None if there are none or the rows are no table."""
    names = [name for name in rows.column_names if name.endswith("input_ids")] if isinstance(rows, Dataset) else []
    if not names:
        return None
    table = rows.select_columns(names).with_format("arrow")[:]
    return sum(pc.sum(pc.list_value_length(table[name])).as_py() or 0 for name in names)


def memory_bytes(
    parameters: int, trained: int, dtype_bytes: int, *, copies: int = 1, sharded: Sequence[int] = ()
) -> int:
    """Estimate what one process holds of weights, gradients and AdamW's two moments, in bytes; activations come on top.

    Args:
        parameters: of the model.
        trained: how many of them are trained; gradients and moments are held in the dtype of the weights.
        dtype_bytes: 4 for float32 (and for weights trained beside autocast), 2 for 16 bits.
        copies: models in memory: 2 with a second one as the reference.
        sharded: of (weights, gradients, moments), by how many processes each is divided; 1: held whole.
    """
    weights, gradients, moments = sharded or (1, 1, 1)
    return dtype_bytes * (copies * parameters // weights + trained // gradients + 2 * trained // moments)
