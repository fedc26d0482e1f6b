"""The trainer of supervised fine-tuning and of the forgetting baselines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reproalign.ama.align.averaging import Averaging
from reproalign.ama.align.distillation import all_positions, distance, squared_distance
from reproalign.ama.align.weight_penalty import Start, WeightPenalty, penalise
from reproalign.common.config.model import LogprobsConfig
from reproalign.common.logprobs.model import install_completion_logps
from reproalign.common.logprobs.questions import StatisticsRequest
from reproalign.common.text.collate import IGNORED
from reproalign.common.training.collecting import MicroBatch
from reproalign.common.training.reference import Reference
from reproalign.common.training.token_average import TokenAverageTrainer, micro_batch_mean, token_mean


@dataclass(frozen=True)
class Distillation:
    """A penalty on the distance of next-token distributions from those of θ_0.

    Attributes:
        weight: λ, at least 0.
        statistic: ``forward_kl``, ``reverse_kl``, or ``risk`` for the squared distance.
        reduction: of :func:`reproalign.ama.align.distillation.distance`.
        reference: θ_0.
    """

    weight: float
    statistic: str
    reduction: str
    reference: Reference

    def request(self, model: nn.Module, inputs: dict[str, Tensor]) -> StatisticsRequest:
        """Return what the model is asked for, beside the log-probabilities of its tokens."""
        states = self.reference.states(model, inputs)
        return StatisticsRequest(states, ("logps", self.statistic), squared_distance)


class ForgettingTrainer(TokenAverageTrainer):
    """Trains on rows of ``input_ids`` and ``labels``, with a penalty and an average of the iterates if asked.

    Logits of all tokens never exist at once. Logs have ``token_loss``, the mean cross-entropy per supervised token, and
    ``penalty``, with λ; ``loss`` is what is minimised, their sum.

    Args:
        penalty: on weights or on distributions, or None.
        averaging: or None.
        logprobs: how log-probabilities are computed.
        **kwargs: passed on to :class:`TokenAverageTrainer`.
    """

    def __init__(
        self,
        *,
        penalty: WeightPenalty | Distillation | None,
        averaging: Averaging | None,
        logprobs: LogprobsConfig,
        **kwargs: Any,
    ) -> None:
        model: nn.Module = kwargs["model"]
        self._start = Start(model) if isinstance(penalty, WeightPenalty) else None
        install_completion_logps(model, logprobs)
        self.averaging = averaging  # before the callbacks: it is sampled before a checkpoint is sealed
        super().__init__(**kwargs)
        self.penalty = penalty
        if isinstance(penalty, Distillation):
            penalty.reference.prepare(self.accelerator, logprobs)
        if averaging is not None:
            self.add_callback(averaging)

    def save_state(self, checkpoint: Path) -> None:
        """Write the averages too."""
        super().save_state(checkpoint)
        if self.averaging is not None:
            self.averaging.save(checkpoint)

    def load_state(self, checkpoint: Path) -> None:
        """Read the averages too."""
        super().load_state(checkpoint)
        if self.averaging is not None:
            self.averaging.load(checkpoint)

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Make the gradients of a micro-batch; after a step's last one add those of a penalty on the weights."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not isinstance(self.penalty, WeightPenalty) or not self.accelerator.sync_gradients:
            return loss
        assert self._start is not None  # there is a penalty on weights
        assert self.model is not None  # it was given
        scaler = self.accelerator.scaler
        scale = 1.0 if scaler is None else float(scaler.get_scale())
        value = penalise(self.penalty, self._start.beside(self.model), gradient_scale=scale)
        self.collect("train", {"penalty": value})
        return loss + value.to(loss.dtype)

    def micro_batch(self, model: nn.Module, inputs: dict[str, Tensor]) -> MicroBatch:
        """Compute the loss of a micro-batch; in evaluations the sum of losses and the tokens of every row."""
        inputs = dict(inputs)
        labels, share = inputs.pop("labels"), inputs.pop("share", None)
        supervised = labels != IGNORED
        if not model.training:
            answer = model(**inputs, completion_mask=supervised, use_cache=False)
            rows = torch.stack([-answer["sums"], answer["counts"].to(answer["sums"].dtype)], dim=1)
            return MicroBatch(-answer["per_token"], {}, rows, rows[:, :0])
        if isinstance(self.penalty, Distillation):
            losses, away = self._distilled(self.penalty, model, inputs, supervised)
        else:
            losses, away = -model(**inputs, completion_mask=supervised, use_cache=False)["per_token"], None
        total = micro_batch_mean(losses) if share is None else token_mean(losses, share)
        metrics: dict[str, Any] = {"token_loss": (losses.sum(), losses.new_tensor(float(len(losses))))}
        if away is not None:
            total = total + away
            metrics["penalty"] = away
        return MicroBatch(total[None], metrics, losses[:0], losses[:0])

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Measure the held-out rows and log ``eval_loss``: nats per supervised token, without any penalty."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        sums, tokens = self.rewards(rows)[0].sum(0)
        return self.log_evaluation({"loss": float(sums / tokens)}, metric_key_prefix)

    def _distilled(
        self, penalty: Distillation, model: nn.Module, inputs: dict[str, Tensor], supervised: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the losses of the supervised tokens, and λ times the distance at all positions."""
        longer = all_positions(inputs["input_ids"], inputs["attention_mask"])
        answer = model(**longer, statistics=penalty.request(model, longer), use_cache=False)
        scored = longer["completion_mask"][:, 1:].bool()
        learned = torch.cat([supervised[:, 1:], torch.zeros_like(supervised[:, :1])], dim=1)[scored]
        found = answer["per_token"]
        away = distance(found[penalty.statistic], len(supervised), penalty.reduction, penalty.weight)
        return -found["logps"][learned], away
