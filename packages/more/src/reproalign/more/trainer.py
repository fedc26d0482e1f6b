"""MORE's trainer: every step's loss weighted by domain, with weights from the head's gradients in closed form."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from reproalign.common.errors import UserError
from reproalign.common.reward.model import head_size
from reproalign.common.training.collecting import CollectingTrainer, MicroBatch
from reproalign.more.balance import Balancer
from reproalign.more.config import WeightsConfig
from reproalign.more.loss import DomainSums, domain_sums, weighted_ranking_loss
from reproalign.more.metrics import Measured, mean_of_domains, preference_metrics

Metrics = dict[str, Tensor | tuple[Tensor, Tensor]]
LOGGED = ("accuracy", "loss", "ece_10")  # of every held-out domain


class RewardTrainer(CollectingTrainer):
    """The plain ranking loss on whatever items a batch holds: MultiTask, and single domains.

    Batches come from :class:`reproalign.more.groups.ItemCollator`. Under ``paper`` the loss is the mean over the pairs
    of all processes' micro-batches; under ``released`` every process averages over its own.

    Args:
        domains: their names.
        held_out: domain -> items; :meth:`evaluate` measures each.
        variant: ``paper`` or ``released``.
        **kwargs: passed on to ``transformers.Trainer``.
    """

    needs_gradients = False  # of the head, by domain

    def __init__(
        self, *, domains: list[str], held_out: Mapping[str, Dataset[Any]], variant: str, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.domains, self.held_out, self.variant = domains, held_out, variant

    def micro_batch(self, model: nn.Module, inputs: dict[str, Tensor]) -> MicroBatch:
        """Compute the rewards of the micro-batch, and its loss."""
        output = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], rewards=True)
        scores, slot = inputs["scores"], inputs["slot"]
        rewards = output["rewards"].new_zeros(scores.numel()).scatter(0, slot, output["rewards"]).view_as(scores)
        if not model.training:
            weights = rewards.new_ones(len(scores))
            loss = weighted_ranking_loss(rewards, scores, weights, 1.0)
            return MicroBatch(loss[None], {}, rewards, scores)
        scores = scores.to(rewards.dtype)
        sums, processes = self.shared(self.local_sums(output["features"], rewards, scores, inputs))
        loss, metrics = self.training_loss(rewards, scores, inputs["domain"], sums)
        metrics |= self.by_domain("loss", sums.losses, sums.pairs) | self.by_domain("accuracy", sums.right, sums.pairs)
        return MicroBatch(processes * loss[None], metrics, rewards, scores)

    def local_sums(
        self,
        features: Float[Tensor, "rows hidden"],
        rewards: Float[Tensor, "items responses"],
        scores: Float[Tensor, "items responses"],
        inputs: dict[str, Tensor],
    ) -> DomainSums:
        """Sum up this process's micro-batch by domain; gradients that nobody needs are of width 0."""
        features = features if self.needs_gradients else features[:, :0]
        return domain_sums(features, rewards, scores, inputs["slot"], inputs["domain"], len(self.domains))

    def training_loss(
        self,
        rewards: Float[Tensor, "items responses"],
        scores: Float[Tensor, "items responses"],
        domain: Int[Tensor, " items"],
        sums: DomainSums,
    ) -> tuple[Float[Tensor, ""], Metrics]:
        """Return this process's part of the loss, and metrics.

        Args:
            rewards: z.
            scores: s.
            domain: of each item.
            sums: what :meth:`shared` makes of the micro-batch's.
        """
        weights = rewards.new_ones(len(rewards))
        return weighted_ranking_loss(rewards, scores, weights, 1.0, sums.pairs.sum()), {}

    def shared(self, local: DomainSums) -> tuple[DomainSums, int]:
        """Add up the sums of all processes; under ``released`` each keeps its own.

        Also returns what the loss is multiplied with, since gradients are averaged over processes: their number, or 1.
        """
        if self.variant == "released":
            return local, 1
        total = self.accelerator.reduce(local.flat(), reduction="sum")
        return DomainSums.from_flat(total), self.accelerator.num_processes

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
            name: preference_metrics(of.rewards, of.scores, variant=self.variant)
            for name, of in self.measured().items()
        }
        found = {f"{domain}/{name}": values[name] for domain, values in metrics.items() for name in LOGGED}
        means = mean_of_domains(metrics) if metrics else {}
        return found | {name: means[name] for name in LOGGED if name in means}

    def measured(self) -> dict[str, Measured]:
        """Return rewards and scores of every held-out domain; all processes take part."""
        return {name: Measured(*self.rewards(items)) for name, items in self.held_out.items()}


class MoreTrainer(RewardTrainer):
    """MORE: L = K Σ_k λ_k Σ_{P_k} -log σ(Δ) / |P|, with λ of :class:`reproalign.more.balance.Balancer`.

    λ is made of each micro-batch anew: under ``paper`` of all processes' together, so that they share one λ and the
    step does not depend on their number; under ``released`` of each process's own.

    Args:
        weights: how λ is made.
        grouped: whether every batch holds items of every domain (resampling).
        **kwargs: passed on to :class:`RewardTrainer`.
    """

    needs_gradients = True

    def __init__(self, *, weights: WeightsConfig, grouped: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.grouped = grouped
        momentum = initial_momentum(len(self.domains), head_size(kwargs["model"]), self.variant, self.args.seed)
        self.balancer = Balancer(weights, self.domains, momentum, self.variant)

    def training_loss(
        self,
        rewards: Float[Tensor, "items responses"],
        scores: Float[Tensor, "items responses"],
        domain: Int[Tensor, " items"],
        sums: DomainSums,
    ) -> tuple[Float[Tensor, ""], Metrics]:
        """Weight the domains, and the items by their domains."""
        balance = self.balancer.step(sums, grouped=self.grouped)
        factor = balance.present.sum().to(rewards.dtype)
        weights = balance.weights.to(rewards.dtype)[domain]
        loss = weighted_ranking_loss(rewards, scores, weights, factor, sums.pairs.sum())
        norms = self.by_domain("grad_norm", balance.gradient_norms, balance.present)
        return loss, self.by_domain("lambda", balance.weights, balance.present) | norms

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
