"""One optimiser step of a reward model on K preference domains: MORE against MultiTask on the same batch.

The batch is a group of one pair per domain, as the published runs have it, of random ids. The model is a small Llama
with a reward head; few layers and few tokens make the share of MORE look larger than it is in a real model. Ways:

    multitask  the plain ranking loss of the batch, `reproalign.more.trainer.RewardTrainer`
    more       `MoreTrainer`: head gradients in closed form on the device, exact min-norm point
    autograd   as `more`, but a backward through the reward head per domain and a CPU round trip of every gradient, as
               the released code has it
    part       what MORE adds, alone: sums, gradients, momentum, Gram matrix, solver

`more` must find the gradients of `autograd` within TOLERANCE, or the script stops. Ratios are to `multitask`; that of
`part` is the share that MORE adds, whatever noise there is in the times of whole steps.

    python benchmarks/more_step.py --hidden 576 2048 --domains 2 5 16 --output results/benchmarks/more_step.json
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from functools import partial
from typing import Any

import measure
import torch
from rich.console import Console
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForSequenceClassification, TrainingArguments

from reproalign.common.reward.model import install_rewards
from reproalign.common.reward.rules import RewardRules
from reproalign.more.balanced import MoreTrainer
from reproalign.more.config import WeightsConfig
from reproalign.more.loss import DomainSums, ranking_loss
from reproalign.more.released import PAPER
from reproalign.more.trainer import RewardTrainer

VOCABULARY = 32_000
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}  # norm of the difference of the gradients over their norm
Batch = dict[str, Tensor]


class AutogradTrainer(MoreTrainer):
    """MORE with a backward per domain: what the closed form replaces."""

    def local_sums(self, features: Tensor, rewards: Tensor, inputs: dict[str, Tensor]) -> DomainSums:
        """Take the head's gradients from autograd."""
        head: Any = self.model.score  # type: ignore[union-attr]
        weight = head.weight.detach().float().requires_grad_()
        scores = inputs["scores"]
        logits = (features.float() @ weight.T).view_as(scores)
        sums = super().local_sums(features, rewards, inputs)
        losses = [
            ranking_loss(logits[inputs["domain"] == k], scores[inputs["domain"] == k]) for k in range(len(sums.pairs))
        ]
        gradients = [torch.autograd.grad(loss, weight, retain_graph=True)[0][0].cpu() for loss in losses]
        return replace(sums, gradients=torch.stack(gradients).to(sums.pairs.device) * sums.pairs[:, None])


def reward_model(hidden: int, arguments: argparse.Namespace) -> LlamaForSequenceClassification:
    """Make the small Llama."""
    torch.manual_seed(0)
    config = LlamaConfig(  # type: ignore[call-arg]
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=arguments.layers,
        num_attention_heads=hidden // 64,
        num_labels=1,
        pad_token_id=0,
    )
    model = LlamaForSequenceClassification(config)
    model.to(arguments.device, getattr(torch, arguments.dtype))
    install_rewards(model, RewardRules(), 0)
    return model


def make_batch(domains: int, arguments: argparse.Namespace) -> Batch:
    """Make a group: one pair of each domain."""
    generator = torch.Generator().manual_seed(domains)
    ids = torch.randint(1, VOCABULARY, (2 * domains, arguments.tokens), generator=generator)
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "slot": torch.arange(2 * domains),
        "scores": torch.tensor([[1.0, 0.0]] * domains),
        "domain": torch.arange(domains),
    }
    return {name: value.to(arguments.device) for name, value in batch.items()}


def make_trainer(kind: type[RewardTrainer], hidden: int, domains: int, arguments: argparse.Namespace) -> Any:
    """Make a trainer of the paper's rules, with a model of its own."""
    options: dict[str, Any] = {} if kind is RewardTrainer else {"weights": WeightsConfig(), "grouped": True}
    return kind(
        model=reward_model(hidden, arguments),
        args=TrainingArguments(
            arguments.folder, use_cpu=arguments.device == "cpu", report_to=[], remove_unused_columns=False
        ),
        domains=[f"domain {k}" for k in range(domains)],
        held_out={},
        rules=PAPER,
        **options,
    )


def optimiser_step(trainer: RewardTrainer, batch: Batch) -> float:
    """Make a step of plain descent: states of an optimiser would add the same to every way."""
    model: nn.Module = trainer.model  # type: ignore[assignment]
    model.train()
    loss: Tensor = trainer.compute_loss(model, dict(batch))  # type: ignore[assignment]
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.sub_(parameter.grad, alpha=1e-6)
                parameter.grad = None
    return float(loss.detach())


def part(trainer: MoreTrainer, features: Tensor, batch: Batch) -> float:
    """Do only what MORE adds to a step."""
    scores = batch["scores"]
    rewards = features.float().sum(1).view_as(scores)
    sums = trainer.local_sums(features, rewards, batch)
    loss, _ = trainer.training_loss(features, rewards, batch, sums)
    return float(loss)


def row(hidden: int, domains: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure one size."""
    batch = make_batch(domains, arguments)
    ways = {"multitask": RewardTrainer, "more": MoreTrainer, "autograd": AutogradTrainer}
    trainers = {name: make_trainer(kind, hidden, domains, arguments) for name, kind in ways.items()}
    runs: dict[str, measure.Run] = {name: partial(optimiser_step, made, batch) for name, made in trainers.items()}
    features = torch.randn(2 * domains, hidden, device=arguments.device, dtype=getattr(torch, arguments.dtype))
    runs["part"] = partial(part, make_trainer(MoreTrainer, hidden, domains, arguments), features, batch)
    for run in runs.values():
        run()  # the warm-up
    found, expected = (trainers[name].balancer.momentum for name in ("more", "autograd"))
    difference = float((found - expected).norm() / expected.norm())
    if not difference <= TOLERANCE[arguments.dtype]:
        raise SystemExit(f"hidden {hidden}, {domains} domains: the gradients differ by {difference:.1e}")
    label = f"hidden {hidden}, {domains} domains"
    measured = measure.measurements(runs, arguments.repeats, arguments.device, label, base="multitask")
    return {"hidden": hidden, "domains": domains, "relative_difference": difference, **measured}


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = measure.parser("A step of MORE against a step of MultiTask on the same batch.")
    parser.add_argument("--hidden", type=int, nargs="+", default=[576, 2048])
    parser.add_argument("--domains", type=int, nargs="+", default=[2, 5, 16])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=64, help="of a response")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        arguments.folder = folder
        rows = [row(hidden, domains, arguments) for hidden in arguments.hidden for domains in arguments.domains]
    del arguments.folder
    Console().print(measure.table("one step; ratios: to MultiTask", rows, "hidden", "domains"))
    measure.write(arguments, {"rows": rows}, "transformers")


if __name__ == "__main__":
    main()
