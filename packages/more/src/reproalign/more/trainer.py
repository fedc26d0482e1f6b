"""The trainer of reward models over several domains: one step from all of its items, and held-out measures by domain.

Under ``paper`` all that a step shares, its weights λ and its numbers of pairs, is made of *all* its items: those of
every process and of every micro-batch, so that neither changes the step. It has to be there before the first backward,
so with gradient accumulation the trainer looks at all micro-batches first (:meth:`RewardTrainer.look_ahead`). Under
``released`` every process trains on every micro-batch by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import Dataset

from reproalign.common.training.collecting import CollectingTrainer, MicroBatch
from reproalign.more.loss import DomainSums, count_pairs, domain_loss, domain_sums, ranking_loss
from reproalign.more.metrics import Measured, mean_of_domains, preference_metrics

Batch = dict[str, Tensor]
Metrics = dict[str, Tensor | tuple[Tensor, Tensor]]
LOGGED = ("accuracy", "loss", "ece_10", "ece_10_calibrated")  # of every held-out domain


@dataclass(frozen=True)
class Step:
    """What all micro-batches of one optimiser step share, over all processes: λ and |P_k|."""

    weights: Float[Tensor, " domains"]
    pairs: Float[Tensor, " domains"]


class RewardTrainer(CollectingTrainer):
    """The plain ranking loss on whatever items a batch holds: MultiTask, and single domains.

    Batches come from :class:`reproalign.more.groups.ItemCollator`. Under ``paper`` the loss is the mean over the pairs
    of the whole optimiser step; under ``released`` every process averages over its own micro-batch.

    Args:
        domains: their names.
        held_out: domain -> items; :meth:`evaluate` measures each.
        variant: ``paper`` or ``released``.
        ties: what a pair of equal rewards counts (:func:`reproalign.more.metrics.preference_metrics`).
        **kwargs: passed on to ``transformers.Trainer``.
    """

    needs_gradients = False  # of the head, by domain

    def __init__(
        self,
        *,
        domains: list[str],
        held_out: Mapping[str, Dataset[Any]],
        variant: str,
        ties: str = "wrong",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.domains, self.held_out, self.variant, self.ties = domains, held_out, variant, ties
        # paper: a micro-batch's loss is its part of the step's, which is not averaged over micro-batches again.
        self.loss_is_scaled_for_ga = variant == "paper"
        self.window: list[Batch] = []  # the step's micro-batches, until the first of them is trained on
        self.current: Step | None = None  # None: made of the micro-batch itself

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """Draw the micro-batches of one optimiser step, and keep them in mind for :meth:`training_step`."""
        samples, count = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.window = samples
        return samples, count

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Train on one micro-batch; before the first of several, look at all of them."""
        if self.window:  # not earlier: a resumed run restores its random states after the batches are drawn
            ahead = self.variant == "paper" and len(self.window) > 1
            self.current = (
                self.look_ahead(model, [self._prepare_inputs(batch) for batch in self.window]) if ahead else None
            )
            self.window = []
        return super().training_step(model, inputs, num_items_in_batch)

    def look_ahead(self, model: nn.Module, batches: list[Batch]) -> Step:
        """Make what the micro-batches of a step share; for a mean over pairs their numbers are enough."""
        parts = [count_pairs(batch["scores"], batch["domain"], len(self.domains)).flat() for batch in batches]
        return self.shared(DomainSums.from_flat(torch.stack(parts).sum(0)))

    def shared(self, local: DomainSums) -> Step:
        """Add up the sums of all processes and weight the domains by their pairs: plain mixing."""
        pairs = self.of_all_processes(local).pairs
        return Step(pairs / pairs.sum().clamp(min=1), pairs)

    def of_all_processes(self, local: DomainSums) -> DomainSums:
        """Add up the sums of all processes."""
        return DomainSums.from_flat(self.accelerator.reduce(local.flat(), reduction="sum"))

    def micro_batch(self, model: nn.Module, inputs: Batch) -> MicroBatch:
        """Compute the rewards of the micro-batch, and its loss."""
        rewards, features = item_rewards(model, inputs)
        if not model.training:
            return MicroBatch(ranking_loss(rewards, inputs["scores"])[None], {}, rewards, inputs["scores"])
        sums = self.local_sums(features, rewards, inputs)
        loss, metrics = self.training_loss(features, rewards, inputs, sums)
        metrics |= self.by_domain("loss", sums.losses, sums.pairs) | self.by_domain("accuracy", sums.right, sums.pairs)
        return MicroBatch(loss[None], metrics, rewards, inputs["scores"])

    def local_sums(
        self, features: Float[Tensor, "rows hidden"], rewards: Float[Tensor, "items responses"], inputs: Batch
    ) -> DomainSums:
        """Sum up this process's micro-batch by domain; gradients that nobody needs are of width 0."""
        features = features if self.needs_gradients else features[:, :0]
        scores = inputs["scores"].to(rewards.dtype)
        return domain_sums(features, rewards, scores, inputs["slot"], inputs["domain"], len(self.domains))

    def training_loss(
        self,
        features: Float[Tensor, "rows hidden"],
        rewards: Float[Tensor, "items responses"],
        inputs: Batch,
        sums: DomainSums,
    ) -> tuple[Float[Tensor, ""], Metrics]:
        """Return this micro-batch's part of the loss, and metrics.

        Args:
            features: h of the responses.
            rewards: z.
            inputs: the micro-batch.
            sums: of :meth:`local_sums`.
        """
        if self.variant == "released":
            return ranking_loss(rewards, inputs["scores"]), {}
        step = self.current or self.shared(sums)
        weights, pairs = (values.to(rewards.dtype) for values in (step.weights, step.pairs))
        part = domain_loss(rewards, inputs["scores"], inputs["domain"], weights, pairs)
        return self.accelerator.num_processes * part, {}  # gradients are averaged over processes

    def by_domain(self, name: str, totals: Float[Tensor, " domains"], counts: Tensor) -> Metrics:
        """Return metrics ``name/<domain>`` from sums and counts; a domain that is absent counts for nothing."""
        return {f"{name}/{domain}": (totals[k], counts[k]) for k, domain in enumerate(self.domains)}

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Measure every held-out domain and log ``eval_<domain>/<metric>``, and the means over domains."""
        return self.log_evaluation(self.measure(), metric_key_prefix)

    def measure(self) -> dict[str, float]:
        """Return accuracy, ranking loss and ECE of ten bins of every held-out domain, and their means over domains."""
        metrics = {
            name: preference_metrics(of.rewards, of.scores, ties=self.ties) for name, of in self.measured().items()
        }
        found = {f"{domain}/{name}": values[name] for domain, values in metrics.items() for name in LOGGED}
        means = mean_of_domains(metrics) if metrics else {}
        return found | {name: means[name] for name in LOGGED if name in means}

    def measured(self) -> dict[str, Measured]:
        """Return rewards and scores of every held-out domain; all processes take part."""
        return {name: Measured(*self.rewards(items)) for name, items in self.held_out.items()}


def item_rewards(
    model: nn.Module, inputs: Batch
) -> tuple[Float[Tensor, "items responses"], Float[Tensor, "rows hidden"]]:
    """Return the rewards of a batch by item, 0 where a response is not there, and the features of its rows."""
    output = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], rewards=True)
    scores, slot = inputs["scores"], inputs["slot"]
    rewards = output["rewards"].new_zeros(scores.numel()).scatter(0, slot, output["rewards"]).view_as(scores)
    return rewards, output["features"]
