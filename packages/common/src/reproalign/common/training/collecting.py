"""What all trainers share beyond ``transformers.Trainer``: reduced metrics, rewards of a data set, checkpoint seals."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import Dataset as TorchDataset
from transformers import Trainer

from reproalign.common.files import write_text
from reproalign.common.training.mixed_precision import keep_float32
from reproalign.common.training.watch import show_progress


@dataclass(frozen=True)
class MicroBatch:
    """What a trainer makes of one micro-batch.

    Attributes:
        losses: to be averaged.
        metrics: to log, each averaged over its entries since the last log; an empty one counts for nothing. A couple
            is a sum and what it is divided by. All ranks name the same metrics.
        rewards: (rows,) or (rows, columns): the predictions of an evaluation.
        targets: (rows,) or (rows, columns): its labels.
    """

    losses: Float[Tensor, " losses"]
    metrics: Mapping[str, Tensor | tuple[Tensor, Tensor]]
    rewards: Float[Tensor, "rows ..."]
    targets: Float[Tensor, "rows ..."]


Factor = Callable[[int], float]  # of an optimiser step, counted from 0: the learning rate's share of its peak


class TrainerEvaluation(ABC):
    """An evaluation of a paper's own, in place of the loss on ``eval_dataset``."""

    @abstractmethod
    def measure(self, trainer: CollectingTrainer) -> dict[str, float]:
        """Measure the model, on all processes together."""

    @abstractmethod
    def save(self, checkpoint: Path) -> None:
        """Write what the next evaluation depends on into a checkpoint."""

    @abstractmethod
    def load(self, checkpoint: Path) -> None:
        """Read back what :meth:`save` wrote."""


class CollectingTrainer(Trainer):
    """``transformers.Trainer`` with the loss and metrics of :meth:`micro_batch`.

    The training loss is the plain mean of a micro-batch's losses; the Trainer divides by the number of accumulation
    steps and averages over ranks, so that with equal micro-batches every row of the global batch weighs the same.

    Args:
        schedule: from the number of a run's optimiser steps to the learning rate's share at each; None: ``trainer.*``.
        loss_scale: from a micro-batch's number of losses to what they are multiplied by; None: 1.
        decay_all: weight decay for all parameters, biases and norms too.
        evaluation: what :meth:`evaluate` measures and logs; None: the loss and metrics of ``eval_dataset``.
        **kwargs: passed on to ``transformers.Trainer``.
    """

    def __init__(
        self,
        *,
        schedule: Callable[[int], Factor] | None = None,
        loss_scale: Callable[[int], float] | None = None,
        decay_all: bool = False,
        evaluation: TrainerEvaluation | None = None,
        **kwargs: Any,
    ) -> None:
        self.schedule, self.loss_scale, self.decay_all = schedule, loss_scale, decay_all
        self.evaluation = evaluation
        super().__init__(**kwargs)
        if kwargs.get("train_dataset") is not None:  # what is only evaluated stays as it was loaded
            keep_float32(self.accelerator, kwargs["model"])  # now: a reference is placed before training begins
        self.loss_is_scaled_for_ga = False  # the loss is a micro-batch mean
        self._collected: dict[str, dict[str, Tensor]] = {"train": defaultdict(_nothing), "eval": defaultdict(_nothing)}
        show_progress(self)

    def save_state(self, checkpoint: Path) -> None:
        """Write, on every process, what a checkpoint lacks before it is sealed."""
        sums = {name: entry.tolist() for name, entry in self._collected["train"].items()}
        write_text(self._collected_path(checkpoint), json.dumps(sums) + "\n")  # one may be NaN
        if self.evaluation is not None and self.args.process_index == 0:
            self.evaluation.save(checkpoint)

    def load_state(self, checkpoint: Path) -> None:
        """Read back what :meth:`save_state` wrote, before training goes on from ``checkpoint``."""
        path = self._collected_path(checkpoint)
        if path.is_file():  # a checkpoint of an earlier version has none
            sums = json.loads(path.read_text(encoding="utf-8"))
            self._collected["train"].update({name: torch.tensor(entry) for name, entry in sums.items()})
        if self.evaluation is not None:
            self.evaluation.load(checkpoint)

    def _collected_path(self, checkpoint: Path) -> Path:
        return checkpoint / f"collected-{self.args.process_index}.json"

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """Return the schedule of the learning rate: ``schedule``, or that of ``trainer.*``."""
        if self.schedule is None or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, self.schedule(num_training_steps))  # type: ignore[arg-type]
        return self.lr_scheduler

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Name the parameters that decay."""
        if self.decay_all:
            return [name for name, _ in model.named_parameters()]
        return super().get_decay_parameter_names(model)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Measure and log what ``evaluation`` says, or the loss and metrics of ``eval_dataset``."""
        if self.evaluation is None:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        return self.log_evaluation(self.evaluation.measure(self), metric_key_prefix)

    def log_evaluation(self, found: Mapping[str, float], prefix: str) -> dict[str, float]:
        """Log what an evaluation found, with ``prefix`` before the names, tell the callbacks, and return it."""
        metrics = {f"{prefix}_{name}": value for name, value in found.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @abstractmethod
    def micro_batch(self, model: nn.Module, inputs: dict[str, Tensor]) -> MicroBatch:
        """Compute losses, metrics and rewards."""

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, MicroBatch]:
        """Return the mean loss of the micro-batch, and collect its metrics for the next log."""
        result = self.micro_batch(model, inputs)
        self.collect("train" if model.training else "eval", result.metrics)
        losses = result.losses
        if self.loss_scale is not None:
            losses = losses * self.loss_scale(len(losses))
        loss = losses.mean()
        return (loss, result) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the loss, the rewards and the targets of one evaluation batch."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, result = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss.detach(), None, None
        return loss.detach(), result.rewards.detach().float(), result.targets

    def rewards(self, dataset: Dataset | TorchDataset[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the rewards and the targets (:class:`MicroBatch`) of every row of ``dataset``."""
        output = self.predict(dataset)  # type: ignore[arg-type]
        self._drain("eval")  # not part of any logged evaluation
        return np.asarray(output.predictions, dtype=np.float64), np.asarray(output.label_ids, dtype=np.float64)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log ``logs`` with the collected metrics, averaged over what came since the last log on all ranks."""
        phase = "eval" if any(key.startswith("eval_") for key in logs) else "train"
        prefix = "eval_" if phase == "eval" else ""
        collected = {f"{prefix}{name}": value for name, value in self._drain(phase).items()}
        super().log({**logs, **collected}, start_time)

    def derived_metrics(self, means: dict[str, float]) -> dict[str, float]:
        """Return further metrics that follow from the averaged ones; a subclass may add some."""
        return {}

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Move a batch to the device and no more: under DeepSpeed the Trainer would round reference log-probs and
        targets to the dtype of the weights.
        """
        return {name: value.to(self.args.device) for name, value in inputs.items()}

    def collect(self, phase: str, metrics: Mapping[str, Tensor | tuple[Tensor, Tensor]]) -> None:
        """Take metrics of ``train`` or ``eval`` up for the next log, in the form of :class:`MicroBatch`."""
        for name, value in metrics.items():
            if isinstance(value, tuple):
                total, count = value
            else:
                total, count = value.sum(), torch.tensor(float(value.numel()), device=value.device)
            entry = torch.stack([total.detach().float(), count.detach().float().to(total.device)])
            self._collected[phase][name] = self._collected[phase][name].to(entry.device) + entry

    def _drain(self, phase: str) -> dict[str, float]:
        collected, self._collected[phase] = self._collected[phase], defaultdict(_nothing)
        if not collected:
            return {}
        names = sorted(collected)
        device = self.accelerator.device  # what a checkpoint gave back is on the CPU until something is added to it
        local = torch.stack([collected[name].to(device) for name in names])
        sums, counts = self.accelerator.reduce(local, reduction="sum").unbind(1)
        means = {
            name: value / count
            for name, value, count in zip(names, sums.tolist(), counts.tolist(), strict=True)
            if count
        }
        return means | self.derived_metrics(means)


def _nothing() -> Tensor:
    return torch.zeros(2)  # sum and count
