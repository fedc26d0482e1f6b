"""Training a policy on unpaired feedback (desirable or not) against a frozen reference, without the loss."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import EvalPrediction

from reproalign.common.config import LogprobsConfig
from reproalign.common.errors import choose
from reproalign.common.evaluation.unpaired import margin, unpaired_metrics
from reproalign.common.logprobs.model import install_completion_logps
from reproalign.common.logprobs.values import install_completion_values
from reproalign.common.models.value_head import has_value_head
from reproalign.common.text.collate import FORWARD, forward_inputs
from reproalign.common.training.collecting import CollectingTrainer, MicroBatch
from reproalign.common.training.reference import Reference


@dataclass(frozen=True)
class ExampleLogps:
    """Log π(y|x) of a micro-batch of examples, in nats; matrices are 0 behind a completion's end.

    Attributes:
        policy: summed over completion tokens.
        ref: likewise of the reference.
        desirable: the labels.
        mask: which entries of the matrices are completion tokens.
        policy_tokens: per token.
        ref_tokens: likewise of the reference.
        values: of a model with a value head, V of the state before each token.
        kl: KTO's estimate, max(0, mean log-ratio of mismatched rows); without gradient.
        tokenwise_kl: per mismatched row, the largest max(0, log-ratio) of a token; without gradient.
    """

    policy: Float[Tensor, " examples"]
    ref: Float[Tensor, " examples"]
    desirable: Bool[Tensor, " examples"]
    mask: Bool[Tensor, "examples tokens"]
    policy_tokens: Float[Tensor, "examples tokens"]
    ref_tokens: Float[Tensor, "examples tokens"]
    values: Float[Tensor, "examples tokens"] | None = None
    kl: Float[Tensor, ""] | None = None
    tokenwise_kl: Float[Tensor, " examples"] | None = None


@dataclass(frozen=True)
class ExampleScores:
    """What a paper's loss makes of a micro-batch.

    Attributes:
        losses: to be averaged; not necessarily one per example.
        rewards: of the examples.
        metrics: to log: each is averaged over its entries, however many there are.
    """

    losses: Float[Tensor, " losses"]
    rewards: Float[Tensor, " examples"]
    metrics: dict[str, Tensor] = field(default_factory=dict)


class UnpairedTrainer(CollectingTrainer):
    """Computes policy and reference log-probs of examples, and KTO's KL where the rows have what it takes.

    Batches come from :class:`reproalign.common.text.collate.UnpairedCollator`. Either class may be absent from a
    micro-batch: metrics are averaged over the examples there are, on all ranks. An evaluation also reports the area
    under the ROC curve, ``eval_auc``. :meth:`rewards` are (examples,), its targets the labels.

    Args:
        reference: the frozen reference policy, see :mod:`reproalign.common.training.reference`.
        logprobs: how per-token log-probabilities are computed.
        kl_batch: what the KL is averaged over: ``effective``, the micro-batches of all processes of an optimiser
            step together, so that cutting the batch otherwise changes nothing; or ``process``, nothing: a micro-batch
            of one process has a KL of its own. An evaluation has none but micro-batches.
        **kwargs: passed on to ``transformers.Trainer``.
    """

    def __init__(
        self,
        *,
        reference: Reference,
        logprobs: LogprobsConfig | None = None,
        kl_batch: str = "effective",
        **kwargs: Any,
    ) -> None:
        options = logprobs or LogprobsConfig()
        self.kl_batch = choose("kl_batch", kl_batch, ["effective", "process"])
        model = kwargs["model"]
        install = install_completion_values if has_value_head(model) else install_completion_logps
        install(model, implementation=options.implementation, chunk_size=options.chunk_size)
        super().__init__(compute_metrics=_evaluation_metrics, **kwargs)
        self.reference = reference
        reference.prepare(self.accelerator, options)

    @abstractmethod
    def example_loss(self, logps: ExampleLogps, inputs: dict[str, Tensor]) -> ExampleScores:
        """Return losses and rewards of one micro-batch."""

    def micro_batch(self, model: nn.Module, inputs: dict[str, Tensor]) -> MicroBatch:
        """Compute the log-probs of the micro-batch and hand them to :meth:`example_loss`."""
        if "KL_input_ids" in inputs:
            (inputs,) = self._with_kl(model, [inputs])
        output = model(**forward_inputs(inputs), use_cache=False)
        reference = self.reference.completion_logps(model, inputs)
        values = output.get("state_values")
        logps = ExampleLogps(
            policy=output["sums"],
            ref=reference["sums"],
            desirable=inputs["label"],
            mask=by_row(torch.ones_like(output["rows"], dtype=torch.bool), output["counts"]),
            policy_tokens=by_row(output["per_token"], output["counts"]),
            ref_tokens=by_row(reference["per_token"], output["counts"]),
            values=None if values is None else by_row(values, output["counts"]),
            kl=inputs.get("kl"),
            tokenwise_kl=inputs.get("tokenwise_kl"),
        )
        scores = self.example_loss(logps, inputs)
        metrics = dict(scores.metrics)
        for name, chosen in (("desirable", logps.desirable), ("undesirable", ~logps.desirable)):
            metrics[f"rewards/{name}"] = scores.rewards[chosen]
            metrics[f"logps/{name}"] = logps.policy[chosen]
        if logps.kl is not None:
            metrics["kl"] = logps.kl
        return MicroBatch(scores.losses, metrics, scores.rewards, logps.desirable.float())

    def derived_metrics(self, means: dict[str, float]) -> dict[str, float]:
        """Add the difference of the classes' mean rewards."""
        return margin(means)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """Take the micro-batches of an optimiser step, and estimate their KL before the first of them is trained on."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.kl_batch == "effective" and batches and "KL_input_ids" in batches[0]:
            batches = self._with_kl(self.model_wrapped, [self._prepare_inputs(batch) for batch in batches])
        return batches, items

    def _with_kl(self, model: nn.Module, batches: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Replace the mismatched rows of ``batches`` by what :class:`ExampleLogps` needs of them."""
        with torch.no_grad(), self.compute_loss_context_manager():
            measured = [self._mismatched(model, batch) for batch in batches]
        ratios = torch.cat([sums for sums, _ in measured])
        kl = kl_estimate(ratios) if self.kl_batch == "process" else kl_estimate(ratios, self._over_processes)
        dropped = {f"KL_{name}" for name in FORWARD} | {"ref_KL_logps"}
        return [
            {name: value for name, value in batch.items() if name not in dropped} | {"kl": kl, "tokenwise_kl": largest}
            for batch, (_, largest) in zip(batches, measured, strict=True)
        ]

    def _mismatched(
        self, model: nn.Module, batch: dict[str, Tensor]
    ) -> tuple[Float[Tensor, " examples"], Float[Tensor, " examples"]]:
        output = model(**forward_inputs(batch, "KL_"), use_cache=False)
        reference: Mapping[str, Tensor] = self.reference.completion_logps(model, batch, "KL_")
        ratios = by_row(output["per_token"] - reference["per_token"], output["counts"])
        return output["sums"] - reference["sums"], tokenwise_kl_estimate(ratios)

    def _over_processes(self, local: Tensor) -> Tensor:
        total: Tensor = self.accelerator.reduce(local, reduction="sum")
        return total


def kl_estimate(
    log_ratios: Float[Tensor, " examples"], over_processes: Callable[[Tensor], Tensor] = lambda local: local
) -> Float[Tensor, ""]:
    """KTO's K: max(0, mean of log π - log π_ref) over mismatched rows, in nats; no gradient.

    Args:
        log_ratios: of the rows of this process, sums over completion tokens.
        over_processes: adds a tensor up over the processes whose rows count as well; default: none do.
    """
    ratios = log_ratios.detach()
    total, count = over_processes(torch.stack([ratios.sum(), ratios.new_tensor(float(len(ratios)))]))
    estimate: Tensor = (total / count).clamp(min=0)
    return estimate


def tokenwise_kl_estimate(log_ratios: Float[Tensor, "examples tokens"]) -> Float[Tensor, " examples"]:
    """KTO's K of each row: the largest max(0, log π - log π_ref) of a token of its mismatched pair; no gradient.

    Args:
        log_ratios: per token; 0 behind a completion's end, which is also the least that counts.
    """
    return log_ratios.detach().clamp(min=0).amax(1)


def by_row(values: Tensor, counts: Tensor) -> Tensor:
    """Lay out (tokens,) values of rows one after the other as (rows, longest), 0 behind a row's end."""
    longest = max(int(counts.max()), 1)
    mask = torch.arange(longest, device=values.device) < counts[:, None]
    return values.new_zeros(mask.shape).masked_scatter(mask, values)


def _evaluation_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Only what an average over micro-batches cannot give: the rest is collected."""
    metrics = unpaired_metrics(prediction.predictions, prediction.label_ids)  # type: ignore[arg-type]
    return {"auc": metrics["auc"]} if "auc" in metrics else {}
