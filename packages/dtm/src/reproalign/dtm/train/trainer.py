"""The trainer of DTM: supervised fine-tuning with either average of the loss, and maybe a penalty."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn

from reproalign.common.config.model import LogprobsConfig
from reproalign.common.logprobs.model import install_completion_logps
from reproalign.common.logprobs.scoring import token_losses
from reproalign.common.text.collate import IGNORED
from reproalign.common.training.collecting import MicroBatch
from reproalign.common.training.token_average import (
    TokenAverageTrainer,
    micro_batch_mean,
)
from reproalign.common.training.token_average import token_mean as averaged
from reproalign.dtm.study.metrics import masked_accuracy, perplexity, released_accuracy, token_mean
from reproalign.dtm.train.regularizer import ParameterRegularizer


class SupervisedTrainer(TokenAverageTrainer):
    """Minimises the mean of -log p over the response's tokens (R2), on rows of ``input_ids`` and ``labels``.

    Batches come from :class:`reproalign.common.text.collate.RowCollator`. Logits of all tokens never exist at once.
    Beside the loss that is minimised every log has ``token_loss``, the mean over supervised tokens since the last log.
    Rows are drawn by the Trainer's own sampler, seeded, or come in the order of
    :class:`reproalign.dtm.train.order.ReleasedOrder`; with any number of processes and accumulation steps, step s of
    the optimiser takes rows sb .. sb + b - 1 of the epoch's order, b being the global batch (the one thing about the
    release's order that is certain, ERRATA M1).

    Args:
        normalisation: of :mod:`reproalign.common.training.token_average`.
        regularizer: added to the loss of every step, or None.
        batch_measures: evaluations have the release's accuracy and loss (ERRATA Q11).
        logprobs: how log-probabilities are computed.
        **kwargs: passed on to ``transformers.Trainer``.
    """

    def __init__(
        self,
        *,
        normalisation: str,
        regularizer: ParameterRegularizer | None,
        batch_measures: bool,
        logprobs: LogprobsConfig,
        **kwargs: Any,
    ) -> None:
        install_completion_logps(kwargs["model"], logprobs)
        super().__init__(normalisation=normalisation, **kwargs)
        self.regularizer, self.batch_measures = regularizer, batch_measures
        if regularizer is not None:
            regularizer.place()  # the Trainer has moved the weights by now
        self.chunk_size = logprobs.chunk_size

    def micro_batch(self, model: nn.Module, inputs: dict[str, Tensor]) -> MicroBatch:
        """Compute the loss of the micro-batch; in evaluations what :meth:`measure` makes its metrics of."""
        inputs = dict(inputs)
        labels, share = inputs.pop("labels"), inputs.pop("share", None)
        supervised = labels != IGNORED
        if not bool(inputs["attention_mask"][:, 0].all()):  # padded on the left, where no position is counted
            inputs["position_ids"] = (inputs["attention_mask"].cumsum(1) - 1).clamp_min(0)
        if not model.training:
            return self._measured(model, inputs, labels, supervised)
        answer = model(**inputs, completion_mask=supervised, use_cache=False)
        losses = -answer["per_token"]
        total = micro_batch_mean(losses) if share is None else averaged(losses, share)
        metrics: dict[str, Any] = {"token_loss": (losses.sum(), losses.new_tensor(float(len(losses))))}
        if self.regularizer is not None:
            penalty = self.regularizer()
            total = total + penalty
            metrics["penalty"] = penalty
        return MicroBatch(total[None], metrics, losses[:0], losses[:0])

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Measure the held-out rows and log ``eval_loss``, ``eval_perplexity`` and ``eval_accuracy``."""
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        return self.log_evaluation(self.measure(rows), metric_key_prefix)

    def measure(self, rows: Dataset) -> dict[str, float]:
        """Return loss (nats), perplexity and token accuracy of ``rows``; all processes take part.

        Means over supervised tokens; with ``batch_measures`` the loss is the mean over rows of their batches' means,
        and the accuracy counts prompt and padding positions (ERRATA Q11).
        """
        values, _ = self.rewards(rows)
        sums, tokens, correct, widths, means = values.T
        if self.batch_measures:
            mean = float(np.mean(means))
            accuracy = released_accuracy(int(correct.sum()), widths.astype(int).tolist())
        else:
            mean, accuracy = token_mean(sums, tokens), masked_accuracy(int(correct.sum()), int(tokens.sum()))
        return {"loss": mean, "perplexity": perplexity(mean), "accuracy": accuracy}

    def _measured(self, model: nn.Module, inputs: dict[str, Tensor], labels: Tensor, supervised: Tensor) -> MicroBatch:
        """Return of every row the sum of its losses, its tokens, those greedy decoding hits, width, batch mean."""
        states = model(**inputs, completion_mask=supervised, head_states=True, use_cache=False)
        scored = supervised[:, 1:]
        losses, hits = token_losses(states, labels[:, 1:][scored], chunk_size=self.chunk_size)
        by_row = losses.new_zeros(2, *scored.shape, dtype=torch.float64)
        for layer, values in zip(by_row, (losses, hits), strict=True):
            layer.masked_scatter_(scored, values.double())
        sums, correct = by_row.sum(2)
        width, mean = torch.full_like(sums, labels.shape[1]), losses.double().mean().expand_as(sums)
        rows = torch.stack([sums, scored.sum(1).double(), correct, width, mean], dim=1)
        return MicroBatch(losses.mean()[None], {}, rows, rows[:, :0])
