"""MORE's trainer: every step's loss weighted by domain, with weights from the head's gradients in closed form.

Under ``paper`` all that a step shares, its λ and its numbers of pairs, is made of *all* its items: those of every
process and of every micro-batch, so that neither changes the step. λ has to be there before the first backward. So with
gradient accumulation a pass without gradients goes over the step's micro-batches first
(:meth:`MoreTrainer.look_ahead`), and draws the same dropout masks as the pass that follows: one more forward, which
costs about a third of a step's products. A step of one micro-batch needs none, nor do rules that read no gradients.
Under ``released`` every process weights every micro-batch by itself (:mod:`reproalign.more.released`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Dataset

from reproalign.common.errors import UserError
from reproalign.common.reward.model import head_size
from reproalign.common.training.collecting import CollectingTrainer, MicroBatch
from reproalign.more.balance import Balancer
from reproalign.more.config import WeightsConfig
from reproalign.more.loss import DomainSums, count_pairs, domain_loss, domain_sums, ranking_loss
from reproalign.more.metrics import Measured, mean_of_domains, preference_metrics
from reproalign.more.released import row_weights, rows_loss, warmup_decay

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
        schedule: whether the learning rate follows the release's WarmupDecayLR; otherwise ``trainer.*`` says.
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
        schedule: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.domains, self.held_out, self.variant, self.ties, self.schedule = domains, held_out, variant, ties, schedule
        # paper: a micro-batch's loss is its part of the step's, which is not averaged over micro-batches again.
        self.loss_is_scaled_for_ga = variant == "paper"
        self.window: list[Batch] = []  # the step's micro-batches, until the first of them is trained on
        self.current: Step | None = None  # None: made of the micro-batch itself

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        """Return the schedule of the learning rate: the release's, or that of ``trainer.*``."""
        if not self.schedule or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        warmup = self.args.get_warmup_steps(num_training_steps)
        self.lr_scheduler = warmup_decay(optimizer or self.optimizer, num_training_steps, warmup)
        return self.lr_scheduler

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
        found = {f"{metric_key_prefix}_{name}": value for name, value in self.measure().items()}
        self.log(found)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

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


class MoreTrainer(RewardTrainer):
    """MORE: Σ_k λ_k L_k (R1), with λ of :class:`reproalign.more.balance.Balancer`.

    Under ``paper`` there is one λ for each optimiser step; under ``released`` one for each micro-batch of each process.

    Args:
        weights: how λ is made.
        grouped: whether every batch holds items of every domain (resampling).
        **kwargs: passed on to :class:`RewardTrainer`.
    """

    def __init__(self, *, weights: WeightsConfig, grouped: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.grouped = grouped
        momentum = initial_momentum(len(self.domains), head_size(kwargs["model"]), self.variant, self.args.seed)
        self.balancer = Balancer(weights, self.domains, momentum, self.variant)
        self.needs_gradients = self.balancer.needs_gradients and self.variant == "paper"

    def look_ahead(self, model: nn.Module, batches: list[Batch]) -> Step:
        """Sum up the head's gradients of all micro-batches, in a pass of its own (module docstring)."""
        if not self.needs_gradients:
            return super().look_ahead(model, batches)
        model.train()
        device = self.args.device
        devices = [] if device.type == "cpu" else [device]
        parts = []
        with torch.no_grad(), torch.random.fork_rng(devices, device_type=device.type):
            for batch in batches:
                with self.compute_loss_context_manager():
                    rewards, features = item_rewards(model, batch)
                parts.append(self.local_sums(features, rewards, batch).flat())
        return self.shared(DomainSums.from_flat(torch.stack(parts).sum(0)))

    def shared(self, local: DomainSums) -> Step:
        """Add up the sums of all processes and weight the domains by the rule."""
        sums = self.of_all_processes(local)
        found = self.balancer.step(sums, grouped=self.grouped)
        self.collect("train", self.by_domain("lambda", found.weights, found.present))
        if self.needs_gradients:
            self.collect("train", self.by_domain("grad_norm", found.gradient_norms, found.present))
        return Step(found.weights, sums.pairs)

    def training_loss(
        self,
        features: Float[Tensor, "rows hidden"],
        rewards: Float[Tensor, "items responses"],
        inputs: Batch,
        sums: DomainSums,
    ) -> tuple[Float[Tensor, ""], Metrics]:
        """Weight the domains; under ``released`` the rows as its weights meet them.

        ``lambda/<domain>`` is then the mean weight that the domain's rows had in the loss.
        """
        if self.variant == "paper":
            return super().training_loss(features, rewards, inputs, sums)
        scores, domain = inputs["scores"].to(rewards.dtype), inputs["domain"]
        found = row_weights(self.balancer, features, rewards, scores, inputs["slot"], domain, grouped=self.grouped)
        weights = found.weights.to(rewards.dtype)
        loss = rows_loss(rewards, scores, weights, domain, grouped=self.grouped)
        met = weights.new_zeros(len(domain))
        met[: len(weights)] = weights[: len(domain)]
        metrics = self.by_domain("lambda", torch.zeros_like(sums.items).index_add(0, domain, met), sums.items)
        if found.balance is not None:
            metrics |= self.by_domain("grad_norm", found.balance.gradient_norms, found.balance.present)
        return loss, metrics

    def save_state(self, checkpoint: Path) -> None:
        """Save the momentum; under ``released`` every process has its own."""
        if self.variant == "released" or self.args.process_index == 0:
            save_file({"momentum": self.balancer.momentum.contiguous().cpu()}, self._state_file(checkpoint))

    def load_state(self, checkpoint: Path) -> None:
        """Read the momentum back.

        Raises:
            UserError: if it is not there, or of other domains.
        """
        path = self._state_file(checkpoint)
        if not path.is_file():
            raise UserError(
                f"{path} is missing: the checkpoint is of another method or number of processes; use resume=never"
            )
        momentum = load_file(path)["momentum"]
        if momentum.shape != self.balancer.momentum.shape:
            raise UserError(
                f"{path} holds the momentum of {len(momentum)} domains; this run has {len(self.domains)}; "
                "use resume=never"
            )
        self.balancer.momentum = momentum

    def _state_file(self, checkpoint: Path) -> Path:
        return checkpoint / f"balance-{self.args.process_index if self.variant == 'released' else 0}.safetensors"


def initial_momentum(domains: int, hidden: int, variant: str, seed: int) -> Float[Tensor, "domains hidden"]:
    """Return m before the first step: zeros; ``released``: one fresh linear layer's weight (ERRATA Q6)."""
    if variant == "paper":
        return torch.zeros(domains, hidden)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(hidden, 1, bias=False).weight.detach().repeat(domains, 1)


def item_rewards(
    model: nn.Module, inputs: Batch
) -> tuple[Float[Tensor, "items responses"], Float[Tensor, "rows hidden"]]:
    """Return the rewards of a batch by item, 0 where a response is not there, and the features of its rows."""
    output = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], rewards=True)
    scores, slot = inputs["scores"], inputs["slot"]
    rewards = output["rewards"].new_zeros(scores.numel()).scatter(0, slot, output["rewards"]).view_as(scores)
    return rewards, output["features"]
