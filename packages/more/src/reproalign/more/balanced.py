"""MORE's trainer: the domains' losses weighted at every step, with weights from the head's gradients in closed form.

Under ``paper`` λ is made of all items of a step. With gradient accumulation a pass without gradients goes over the
step's micro-batches first (:meth:`MoreTrainer.look_ahead`), and draws the same dropout masks as the pass that follows:
one more forward, which costs about a third of a step's products. A step of one micro-batch needs none, nor do rules
that read no gradients. Under ``released`` every process weights every micro-batch by itself
(:mod:`reproalign.more.released`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from reproalign.common.errors import UserError
from reproalign.common.reward.model import head_size
from reproalign.more.balance import Balancer
from reproalign.more.config import WeightsConfig
from reproalign.more.loss import DomainSums
from reproalign.more.released import row_weights, rows_loss
from reproalign.more.trainer import Batch, Metrics, RewardTrainer, Step, item_rewards


class MoreTrainer(RewardTrainer):
    """MORE: Σ_k λ_k L_k (eq. 7), with λ of :class:`reproalign.more.balance.Balancer`.

    Under ``paper`` there is one λ for each optimiser step; under ``released`` one for each micro-batch of each process.

    Args:
        weights: how λ is made.
        grouped: whether every batch holds items of every domain (resampling).
        **kwargs: passed on to :class:`RewardTrainer`.
    """

    def __init__(self, *, weights: WeightsConfig, grouped: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.grouped = grouped
        momentum = self.rules.momentum(len(self.domains), head_size(kwargs["model"]), self.args.seed)
        self.balancer = Balancer(weights, self.domains, momentum, self.rules)
        self.needs_gradients = self.balancer.needs_gradients and self.rules.whole_step

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
        if self.rules.whole_step:
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
        """Save the momentum too; under ``released`` every process has its own."""
        super().save_state(checkpoint)
        if not self.rules.whole_step or self.args.process_index == 0:
            save_file({"momentum": self.balancer.momentum.contiguous().cpu()}, self._state_file(checkpoint))

    def load_state(self, checkpoint: Path) -> None:
        """Read the momentum back too.

        Raises:
            UserError: if it is not there, or of other domains.
        """
        super().load_state(checkpoint)
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
        return checkpoint / f"balance-{0 if self.rules.whole_step else self.args.process_index}.safetensors"
