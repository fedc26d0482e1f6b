"""What the released scripts do differently: the order of their data, and when a reward model's pair counts as won.

Epochs are those of transformers 4.38.1, laid out one after the other.
With R rows, P processes, micro-batches of B and A of them per optimiser step:

    micro-batches per process and epoch   M = ceil(R / (P · B))     the last ones begin again at the epoch's first rows
    optimiser steps per epoch             S = max(floor(M / A), 1)
    optimiser steps of the run            T = ceil(epochs · S)

The M - A·S micro-batches left over at the end of an epoch go into the first step of the next one, and what is left
after step T is not used. Current transformers count ceil(M / A) steps per epoch and divide the last, smaller step by
what it has. So the epochs are laid out as one: a data set of all of them, read in its own order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from numpy.typing import ArrayLike, NDArray
from transformers import TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from reproalign.common.errors import UserError
from reproalign.common.evaluation.calibration import sigmoid


@dataclass(frozen=True)
class Steps:
    """Optimiser steps of a run.

    Attributes:
        per_epoch: S.
        total: T.
        epochs: how many permutations of the rows they take.
        rows_per_epoch: P · B · M, rows that begin again included.
    """

    per_epoch: int
    total: int
    epochs: int
    rows_per_epoch: int


def count_steps(
    rows: int, processes: int, micro_batch: int, accumulation: int, epochs: int | float, max_steps: int = -1
) -> Steps:
    """Return the optimiser steps that the release makes of ``rows`` (module docstring).

    Args:
        rows: R, at least 1.
        processes: P.
        micro_batch: B.
        accumulation: A.
        epochs: as many; not read if ``max_steps`` is positive.
        max_steps: T, if positive.

    Raises:
        UserError: for rows that do not fill one optimiser step: the release then steps once an epoch all the same, with
            a gradient that is too small.
    """
    micro_batches = math.ceil(rows / (processes * micro_batch))
    if micro_batches < accumulation:
        raise UserError(
            f"variant=released: {rows} rows make {micro_batches} micro-batches on each of {processes} processes, less "
            f"than one step of trainer.gradient_accumulation_steps={accumulation}; give more rows or accumulate less"
        )
    per_epoch = micro_batches // accumulation
    total = max_steps if max_steps > 0 else math.ceil(epochs * per_epoch)
    return Steps(per_epoch, total, math.ceil(total / per_epoch), processes * micro_batch * micro_batches)


def lay_out_epochs(dataset: Dataset, arguments: TrainingArguments) -> tuple[Dataset, Steps]:
    """Return the rows of all epochs in the order in which they are trained on, and how many steps they make.

    Every epoch is a permutation of its own, by ``arguments.data_seed``. (The release's order is drawn from torch's
    global generator, whose state depends on everything drawn before; it cannot be had again.)

    Args:
        dataset: rows of one epoch.
        arguments: of the run; changed so that the trainer reads them in order, stops after T steps, and saves and
            evaluates every S steps where it should do so every epoch.

    Raises:
        UserError: for options that the layout leaves no meaning, and too few rows.
    """
    if arguments.train_sampling_strategy != "random" or arguments.dataloader_drop_last:
        raise UserError(
            "variant=released lays the rows out in the order of the release; remove trainer.train_sampling_strategy "
            "and trainer.dataloader_drop_last"
        )
    steps = count_steps(
        len(dataset),
        arguments.world_size,
        arguments.per_device_train_batch_size,
        arguments.gradient_accumulation_steps,
        arguments.num_train_epochs,
        arguments.max_steps,
    )
    arguments.train_sampling_strategy = "sequential"
    arguments.max_steps, arguments.num_train_epochs = steps.total, 1
    if arguments.save_strategy == SaveStrategy.EPOCH:
        arguments.save_strategy, arguments.save_steps = SaveStrategy.STEPS, steps.per_epoch
    if arguments.eval_strategy == IntervalStrategy.EPOCH:
        arguments.eval_strategy, arguments.eval_steps = IntervalStrategy.STEPS, steps.per_epoch
    seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
    order = [_permutation(len(dataset), steps.rows_per_epoch, seed, epoch) for epoch in range(steps.epochs)]
    return dataset.select(np.concatenate(order)), steps


def released_accuracy(margins: ArrayLike) -> float:
    """Return the share of pairs won with a probability σ(d) above 1/2, in float64: a margin below 1e-16 is a tie."""
    return float(np.mean(sigmoid(margins) > 0.5))


def _permutation(rows: int, filled: int, seed: int, epoch: int) -> NDArray[np.int64]:
    order = np.random.default_rng([seed, epoch]).permutation(rows)
    return np.resize(order, filled)  # begins again where the rows do not fill the processes' last micro-batches
