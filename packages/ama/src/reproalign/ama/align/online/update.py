"""The update of an iteration: epochs over its rollouts in mini-batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import set_seed

from reproalign.ama.align.online.learner import Learner, epochs, is_critic, learning_rate
from reproalign.ama.align.online.objective import (
    Mask,
    PPOObjective,
    Terms,
    Tokens,
    advantages_and_returns,
    explained_variance,
    token_rewards,
    whiten,
)
from reproalign.ama.align.online.rollouts import Rollout, number, token_batch
from reproalign.ama.align.ppo_config import PPOConfig
from reproalign.common.errors import ReportedError
from reproalign.common.text.collate import forward_inputs
from reproalign.common.training.examples import by_row

SUMS = ("policy_loss", "value_loss", "ratio", "clip_fraction", "value_clip_fraction", "approximate_kl")


@dataclass(frozen=True)
class Experience:
    """The rollouts of an iteration as matrices (responses, tokens) on the CPU, 0 off the mask."""

    rollouts: Sequence[Rollout]
    mask: Mask
    logps: Tokens
    values: Tokens
    advantages: Tokens
    returns: Tokens


def make_experience(config: PPOConfig, rollouts: Sequence[Rollout], *, baseline: float, eta: float) -> Experience:
    """Return advantages and returns of an iteration's rollouts; the same on every process, which has them all."""
    counts = torch.tensor([len(rollout.response_ids) for rollout in rollouts])
    mask = by_row(torch.ones(int(counts.sum()), dtype=torch.bool), counts)
    logps, ref_logps, values = (
        by_row(torch.cat([getattr(rollout, name) for rollout in rollouts]), counts)
        for name in ("logps", "ref_logps", "values")
    )
    scores = torch.tensor([rollout.reward - baseline for rollout in rollouts])
    rewards = token_rewards(logps, ref_logps, scores, mask, eta)
    advantages, returns = advantages_and_returns(rewards, values, mask, config.gamma, config.lam)
    if config.whitening == "iteration":
        advantages = whiten(advantages, mask)
    return Experience(rollouts, mask, logps, values, advantages, returns)


def update(
    config: PPOConfig,
    learner: Learner,
    experience: Experience,
    *,
    iteration: int,
    pad_id: int,
    critic_only: bool,
    advance: Callable[[int], None],
) -> dict[str, float]:
    """Train on an iteration's rollouts; return what is logged, the same on every process.

    A mini-batch whose mean ratio is above ``ratio_threshold``, infinity included, is skipped: no step is taken, and
    the means that are logged are over the others (0 if there are none).

    Args:
        config: of the run.
        learner: is trained.
        experience: the rollouts.
        iteration: from 1; the order of the mini-batches depends on it and the seed.
        pad_id: of the tokenizer.
        critic_only: the policy, trunk included, stays as it is bit for bit; only the value head learns.
        advance: told how many responses were trained on.

    Raises:
        ReportedError: if the loss of a mini-batch that is not skipped is not finite.
    """
    accelerator = learner.accelerator
    for group in learner.optimizer.param_groups:
        group["lr"] = learning_rate(config, iteration)
    learner.policy.train()
    # Adapters' dropout; every process has noise of its own.
    set_seed(number(f"{config.seed}-{iteration}-update-{accelerator.process_index}"))
    totals: dict[str, float] = dict.fromkeys((*SUMS, "grad_norm"), 0.0)
    steps = skipped = 0
    for rows in minibatches(config, len(experience.rollouts), iteration):
        means = _accumulate(config, learner, experience, rows, pad_id)
        advance(len(rows))
        # Before the rest is looked at: a ratio that overflows is beyond every threshold, and takes the loss with it.
        if config.ratio_threshold is not None and means["ratio"] > config.ratio_threshold:
            learner.optimizer.zero_grad()
            skipped += 1
            continue
        if not torch.tensor(list(means.values())).isfinite().all():
            raise ReportedError(
                f"iteration {iteration}: the loss is not finite; lower learning_rate, set max_grad_norm, or restart "
                "from an earlier iteration (restart_from)"
            )
        steps += 1
        totals["grad_norm"] += _step(learner, config.max_grad_norm, critic_only)
        for name in SUMS:
            totals[name] += means[name]
    found = {name: value / max(steps, 1) for name, value in totals.items() if name != "ratio"}
    found["explained_variance"] = explained_variance(experience.values, experience.returns, experience.mask)
    return {**found, "skipped_updates": float(skipped), "learning_rate": learning_rate(config, iteration)}


def minibatches(config: PPOConfig, count: int, iteration: int) -> Iterator[list[int]]:
    """Yield the rollouts of each optimiser step, in a new order in every epoch."""
    generator = torch.Generator().manual_seed(number(f"{config.seed}-{iteration}-order"))
    for _ in range(epochs(config)):
        order = torch.randperm(count, generator=generator).tolist()
        for start in range(0, count, config.update_batch_size):
            yield order[start : start + config.update_batch_size]


def _accumulate(
    config: PPOConfig, learner: Learner, experience: Experience, rows: list[int], pad_id: int
) -> dict[str, float]:
    """Add up the gradients of a mini-batch, this process's share in micro-batches; return means over its tokens."""
    accelerator = learner.accelerator
    tokens = int(experience.mask[rows].sum())
    advantages = experience.advantages
    if config.whitening == "update":
        advantages = advantages.clone()
        advantages[rows] = whiten(advantages[rows], experience.mask[rows])
    mine = rows[accelerator.process_index :: accelerator.num_processes]
    sums = torch.zeros(len(SUMS), dtype=torch.float64)
    for start in range(0, len(mine), config.micro_batch_size):
        part = mine[start : start + config.micro_batch_size]
        is_last = start + config.micro_batch_size >= len(mine)
        with nullcontext() if is_last else accelerator.no_sync(learner.policy):
            objective = PPOObjective(config.clip, config.value_clip, config.vf_coef)
            terms = _terms(objective, learner, experience, advantages, part, pad_id)
            # DDP averages over processes, and the mini-batch is all of theirs.
            accelerator.backward(objective.loss(terms, tokens) * accelerator.num_processes)
        sums += torch.stack([term.detach().sum() for term in terms]).double().cpu()
    total = accelerator.reduce(sums.float().to(accelerator.device)).cpu()
    means = dict(zip(SUMS, (total / tokens).tolist(), strict=True))
    means["approximate_kl"] /= 2
    return means


def _terms(
    objective: PPOObjective,
    learner: Learner,
    experience: Experience,
    advantages: Tokens,
    part: list[int],
    pad_id: int,
) -> Terms:
    device = learner.accelerator.device
    batch = token_batch([experience.rollouts[row] for row in part], pad_id, device)
    output = learner.policy(**forward_inputs(batch), use_cache=False)
    logps, values = (by_row(output[name].float(), output["counts"]) for name in ("per_token", "state_values"))

    def known(matrix: Tensor) -> Tensor:
        return matrix[part, : logps.shape[1]].to(device)

    return objective.terms(
        logps,
        values,
        known(experience.logps),
        known(experience.values),
        known(advantages),
        known(experience.returns),
        known(experience.mask),
    )


def _step(learner: Learner, max_grad_norm: float | None, critic_only: bool) -> float:
    """Take an optimiser step; return the norm of the gradients before they are clipped."""
    if critic_only:
        for name, parameter in learner.trained().items():
            if not is_critic(name):
                parameter.grad = None
    limit = float("inf") if max_grad_norm is None else max_grad_norm
    norm = nn.utils.clip_grad_norm_(list(learner.trained().values()), limit)
    learner.optimizer.step()
    learner.optimizer.zero_grad()
    return float(norm)
