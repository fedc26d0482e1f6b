"""Training a policy on single responses, desirable or not, against a frozen reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import EvalPrediction

from reproalign.common.errors import choose
from reproalign.common.evaluation.unpaired import margin, unpaired_metrics
from reproalign.common.text.collate import FORWARD, forward_inputs
from reproalign.common.training.collecting import MicroBatch
from reproalign.common.training.objective import Examples, ExampleScores
from reproalign.common.training.policy import PolicyTrainer


class ExampleTrainer(PolicyTrainer):
    """Computes policy and reference log-probs of examples, and KTO's KL where the rows have what it takes.

    Batches come from :class:`reproalign.common.text.collate.UnpairedCollator`. Either class may be absent from a
    micro-batch: metrics are averaged over the examples there are, on all ranks. An evaluation also reports the area
    under the ROC curve, ``eval_auc``. :meth:`rewards` are (examples,), its targets the labels.

    Args:
        kl_batch: what the KL is averaged over: ``effective``, the micro-batches of all processes of an optimiser
            step together, so that cutting the batch otherwise changes nothing; or ``process``, nothing: a micro-batch
            of one process has a KL of its own. An evaluation has none but micro-batches.
        **kwargs: passed on to :class:`PolicyTrainer`; a reference is needed.
    """

    def __init__(self, *, kl_batch: str = "effective", **kwargs: Any) -> None:
        self.kl_batch = choose("kl_batch", kl_batch, ["effective", "process"])
        self.advantages: Tensor | None = None  # of the batch that several steps are made on
        super().__init__(compute_metrics=_evaluation_metrics, **kwargs)

    def save_state(self, checkpoint: Path) -> None:
        """Write the advantages too, where the next step is on the same batch."""
        super().save_state(checkpoint)
        if self.advantages is not None and self.state.global_step % self.objective.steps_per_batch:
            save_file({"advantages": self.advantages.contiguous()}, self._advantages_path(checkpoint))

    def load_state(self, checkpoint: Path) -> None:
        """Read back what :meth:`save_state` wrote."""
        super().load_state(checkpoint)
        path = self._advantages_path(checkpoint)
        if path.is_file():
            self.advantages = load_file(path, device=str(self.args.device))["advantages"]

    def _advantages_path(self, checkpoint: Path) -> Path:
        return checkpoint / f"advantages-{self.args.process_index}.safetensors"

    def micro_batch(self, model: nn.Module, inputs: dict[str, Tensor]) -> MicroBatch:
        """Compute the log-probs of the micro-batch and hand them to the objective."""
        if "KL_input_ids" in inputs:
            (inputs,) = self._with_kl(model, [inputs])
        batch = self._examples(model, inputs)
        if model.training:
            if self.state.global_step % self.objective.steps_per_batch == 0:  # the batch is new
                self.advantages = self.objective.advantages(batch)
            batch = replace(batch, advantages=self.advantages)
        scores: ExampleScores = self.objective(batch)
        metrics = dict(scores.metrics)
        for name, chosen in (("desirable", batch.desirable), ("undesirable", ~batch.desirable)):
            metrics[f"rewards/{name}"] = scores.rewards[chosen]
            metrics[f"logps/{name}"] = batch.logps[chosen]
        if batch.kl is not None:
            metrics["kl"] = batch.kl
        return MicroBatch(scores.losses, metrics, scores.rewards, batch.desirable.float())

    def _examples(self, model: nn.Module, inputs: dict[str, Tensor]) -> Examples:
        assert self.reference is not None  # an objective on examples is relative to one
        output = model(**forward_inputs(inputs), use_cache=False)
        reference = self.reference.completion_logps(model, inputs)
        counts, values = output["counts"], output.get("state_values")
        return Examples(
            logps=output["sums"],
            ref_logps=reference["sums"],
            desirable=inputs["label"],
            mask=by_row(torch.ones_like(output["rows"], dtype=torch.bool), counts),
            token_logps=by_row(output["per_token"], counts),
            ref_token_logps=by_row(reference["per_token"], counts),
            values=None if values is None else by_row(values, counts),
            kl=inputs.get("kl"),
            tokenwise_kl=inputs.get("tokenwise_kl"),
        )

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
        """Replace the mismatched rows of ``batches`` by the two forms of KTO's K."""
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
        assert self.reference is not None  # as above
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
