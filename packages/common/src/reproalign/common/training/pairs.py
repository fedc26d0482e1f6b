"""What the trainers of preference pairs share: reduced metrics, evaluation output, checkpoint seals."""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import Trainer

from reproalign.common.training.checkpoints import ManifestCallback


@dataclass(frozen=True)
class PairScores:
    """What a trainer computes of a micro-batch of pairs.

    Attributes:
        losses: to be averaged; not necessarily one per pair.
        chosen: rewards of the chosen responses.
        rejected: rewards of the rejected ones.
        metrics: scalars to log.
        likelihoods: of a policy, the mean log-probabilities per token of chosen and rejected.
    """

    losses: Float[Tensor, " losses"]
    chosen: Float[Tensor, " pairs"]
    rejected: Float[Tensor, " pairs"]
    metrics: dict[str, Tensor] = field(default_factory=dict)
    likelihoods: tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]] | None = None


class PairTrainer(Trainer):
    """``transformers.Trainer`` over batches of preference pairs.

    A subclass computes :meth:`pair_scores`. The training loss is the plain mean of its per-pair losses over the
    micro-batch; the Trainer divides by the number of accumulation steps and averages over ranks, so that with equal
    micro-batches every pair of the global batch weighs the same.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.loss_is_scaled_for_ga = False  # the loss is a micro-batch mean
        self._sums: dict[str, dict[str, Tensor]] = {"train": defaultdict(_zero), "eval": defaultdict(_zero)}
        self._counts: dict[str, int] = {"train": 0, "eval": 0}
        self.add_callback(ManifestCallback())

    @abstractmethod
    def pair_scores(self, model: nn.Module, inputs: dict[str, Tensor]) -> PairScores:
        """Compute losses and rewards of one micro-batch."""

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, PairScores]:
        """Return the mean loss of the micro-batch, and collect its metrics for the next log."""
        scores = self.pair_scores(model, inputs)
        metrics = {**reward_metrics(scores.chosen, scores.rejected), **scores.metrics}
        self._collect("train" if model.training else "eval", metrics)
        loss = scores.losses.mean()
        return (loss, scores) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the loss, the rewards (pairs, 2 or 4, see :meth:`rewards`) and the targets of one evaluation batch."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, scores = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss.detach(), None, None
        columns = [scores.chosen, scores.rejected, *(scores.likelihoods or ())]
        rewards = torch.stack(columns, dim=-1).detach().float()
        targets = inputs.get("p_chosen", torch.ones(len(rewards), device=rewards.device))
        return loss.detach(), rewards, targets

    def rewards(self, dataset: Dataset) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Score every pair of ``dataset``.

        Returns:
            The rewards of chosen and of rejected, for a policy also their mean log-probabilities per token, as columns
            (pairs, 2 or 4); and the target probabilities (pairs,).
        """
        output = self.predict(dataset)  # type: ignore[arg-type]
        self._drain("eval")  # not part of any logged evaluation
        return np.asarray(output.predictions, dtype=np.float64), np.asarray(output.label_ids, dtype=np.float64)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log ``logs`` with the collected metrics, averaged over the micro-batches since the last log and all ranks."""
        phase = "eval" if any(key.startswith("eval_") for key in logs) else "train"
        prefix = "eval_" if phase == "eval" else ""
        collected = self._drain(phase)
        super().log({**logs, **{f"{prefix}{name}": value for name, value in collected.items()}}, start_time)

    def _collect(self, phase: str, metrics: dict[str, Tensor]) -> None:
        self._counts[phase] += 1
        for name, value in metrics.items():
            self._sums[phase][name] = self._sums[phase][name].to(value.device) + value.detach().float()

    def _drain(self, phase: str) -> dict[str, float]:
        sums, self._sums[phase] = self._sums[phase], defaultdict(_zero)
        count, self._counts[phase] = self._counts[phase], 0
        if count == 0:
            return {}
        names = sorted(sums)
        local = torch.stack([sums[name] for name in names]) / count
        reduced = self.accelerator.reduce(local.to(self.accelerator.device), reduction="mean")
        return dict(zip(names, reduced.tolist(), strict=True))


def reward_metrics(chosen: Float[Tensor, " pairs"], rejected: Float[Tensor, " pairs"]) -> dict[str, Float[Tensor, ""]]:
    """Return mean rewards, mean margin, and the share of pairs ordered rightly; ties count as wrong."""
    return {
        "rewards/chosen": chosen.mean(),
        "rewards/rejected": rejected.mean(),
        "rewards/margins": (chosen - rejected).mean(),
        "rewards/accuracies": (chosen > rejected).float().mean(),
    }


def _zero() -> Tensor:
    return torch.zeros(())
