"""What the trainers of preference pairs share: reduced metrics, evaluation output, checkpoint seals."""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from typing import Any

import torch
from datasets import Dataset
from jaxtyping import Float
from torch import Tensor, nn
from transformers import Trainer

from reproalign.common.training.checkpoints import ManifestCallback


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
    def pair_scores(
        self, model: nn.Module, inputs: dict[str, Tensor]
    ) -> tuple[Float[Tensor, " losses"], Float[Tensor, " pairs"], Float[Tensor, " pairs"], dict[str, Tensor]]:
        """Return the losses, the rewards of chosen and of rejected, and scalar metrics of one micro-batch."""

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """Return the mean loss of the micro-batch, and collect its metrics for the next log."""
        losses, chosen, rejected, metrics = self.pair_scores(model, inputs)
        chosen, rejected = chosen.detach(), rejected.detach()
        self._collect(
            "train" if model.training else "eval",
            {**reward_metrics(chosen, rejected), **metrics},
        )
        loss = losses.mean()
        return (loss, {"chosen": chosen, "rejected": rejected}) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the loss, the rewards (pairs, 2) and the target probabilities (pairs,) of one evaluation batch."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        if prediction_loss_only:
            return loss.detach(), None, None
        rewards = torch.stack([outputs["chosen"], outputs["rejected"]], dim=-1).float()
        targets = inputs.get("p_chosen", torch.ones(len(rewards), device=rewards.device))
        return loss.detach(), rewards, targets

    def rewards(self, dataset: Dataset) -> tuple[Any, Any, Any]:
        """Return the rewards of chosen and of rejected and the target probabilities, each (pairs,) in float64."""
        output = self.predict(dataset)  # type: ignore[arg-type]
        self._drain("eval")  # not part of any logged evaluation
        rewards = output.predictions.astype("float64")
        return rewards[:, 0], rewards[:, 1], output.label_ids.astype("float64")

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


def reward_metrics(
    chosen: Float[Tensor, " pairs"], rejected: Float[Tensor, " pairs"]
) -> dict[str, Float[Tensor, ""]]:
    """Return mean rewards, mean margin, and the share of pairs ordered rightly; ties count as wrong."""
    return {
        "rewards/chosen": chosen.mean(),
        "rewards/rejected": rejected.mean(),
        "rewards/margins": (chosen - rejected).mean(),
        "rewards/accuracies": (chosen > rejected).float().mean(),
    }


def _zero() -> Tensor:
    return torch.zeros(())
