r"""The losses of Ra-DPO's experiments on log-probabilities.

Symbols: P = log π(y|x) summed over the response, in nats, and u = log π(y|x) - log π_ref(y|x) its log-ratio (w chosen,
l rejected); T the response's sequential KL D or sequential risk ratio R (:mod:`reproalign.radpo.risk`); β the
temperature; σ the logistic function. Rewards are for the log: they carry no gradient. Parameters are not checked here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid

Pairs = Float[Tensor, " pairs"]
Examples = Float[Tensor, " examples"]
Tokens = Float[Tensor, "examples tokens"]
Mask = Bool[Tensor, "examples tokens"]


class PairLoss(NamedTuple):
    """Losses and rewards of pairs."""

    losses: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor


class ExampleLoss(NamedTuple):
    """Losses and rewards of single examples."""

    losses: Tensor
    rewards: Tensor


class PPOLoss(NamedTuple):
    """Per example, such that the mean over examples is the mean over the completion tokens of the batch."""

    losses: Tensor
    rewards: Tensor
    policy: Tensor
    critic: Tensor
    kl: Tensor
    clip_fraction: Tensor
    sequence_ratio: Tensor


def dpo_loss(chosen: Pairs, rejected: Pairs, beta: float) -> PairLoss:
    """DPO: -log σ(β (u_w - u_l)); rewards β u."""
    return cdpo_loss(chosen, rejected, beta, 0.0)


def cdpo_loss(chosen: Pairs, rejected: Pairs, beta: float, epsilon: float) -> PairLoss:
    """Conservative DPO, ε the probability of a flipped label: -(1-ε) log σ(z) - ε log σ(-z), z = β (u_w - u_l)."""
    z = beta * (chosen - rejected)
    losses = -(1 - epsilon) * logsigmoid(z) - epsilon * logsigmoid(-z)
    return PairLoss(losses, (beta * chosen).detach(), (beta * rejected).detach())


def token_level_loss(
    chosen: Pairs, rejected: Pairs, chosen_term: Pairs, rejected_term: Pairs, beta: float, alpha: float | None = None
) -> PairLoss:
    """TDPO (T = D) and Ra-DPO (T = R): -log σ(β z); rewards β (u + T).

    First form, ``alpha=None``: z = u_w - u_l - (T_l - T_w).
    Second form: z = u_w - u_l - α (T_l - sg(T_w)), sg stopping the gradient; α = 0 is DPO.
    """
    drift = rejected_term - chosen_term if alpha is None else alpha * (rejected_term - chosen_term.detach())
    rewards = (beta * (u + term).detach() for u, term in ((chosen, chosen_term), (rejected, rejected_term)))
    return PairLoss(-logsigmoid(beta * (chosen - rejected - drift)), *rewards)


def slic_loss(
    chosen: Float[Tensor, "pairs ..."], rejected: Float[Tensor, "pairs ..."], beta: float, lambda_coef: float
) -> PairLoss:
    """SLiC: max(0, β - P_w + P_l) - λ P_w, without a reference; β is a margin in nats.

    Takes log-probs per token (0 where masked) or their sums. They are the rewards too: the release logs them per token.
    """
    sum_chosen, sum_rejected = (torch.einsum("p...->p", side) for side in (chosen, rejected))
    losses = torch.relu(beta - sum_chosen + sum_rejected) - lambda_coef * sum_chosen
    return PairLoss(losses, chosen.detach(), rejected.detach())


def kto_loss(
    log_ratios: Examples,
    desirable: Bool[Tensor, " examples"],
    kl: Float[Tensor, ""] | Examples,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> ExampleLoss:
    """KTO: w_d (1 - σ(β (u - K))) for desirable and w_u (1 - σ(β (K - u))) for undesirable examples; rewards u.

    Args:
        log_ratios: u.
        desirable: which examples are; all or none may be.
        kl: K >= 0 without gradient, from :func:`~reproalign.common.training.unpaired.kl_estimate` or
            :func:`~reproalign.common.training.unpaired.tokenwise_kl_estimate`; 0 is KTO-zero.
        beta: β.
        desirable_weight: w_d.
        undesirable_weight: w_u.
    """
    sign = desirable.to(log_ratios.dtype) * 2 - 1
    weights = torch.full_like(log_ratios, undesirable_weight).masked_fill(desirable, desirable_weight)
    # 1 - σ(x) as σ(-x), which does not round to 0 for large x.
    return ExampleLoss(weights * torch.sigmoid(-beta * sign * (log_ratios - kl.detach())), log_ratios.detach())


def kto_zero_loss(
    log_ratios: Examples,
    desirable: Bool[Tensor, " examples"],
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> ExampleLoss:
    """KTO with the reference point K = 0."""
    return kto_loss(log_ratios, desirable, log_ratios.new_zeros(()), beta, desirable_weight, undesirable_weight)


def sft_loss(logps: Examples) -> Examples:
    """SFT, and CSFT on examples with control tokens: -P, a sum over tokens and not their mean."""
    return -logps


def terminal_rewards(desirable: Bool[Tensor, " examples"], mask: Mask) -> Float[Tensor, "examples tokens"]:
    """PPO's rewards: 1 or -1 on the last token of the mask for a desirable or undesirable example, 0 elsewhere."""
    last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
    return torch.where(desirable[:, None], 1.0, -1.0) * last


def gae(values: Tokens, rewards: Tokens, mask: Mask, gamma: float, lam: float) -> Tokens:
    """Generalised advantage estimates, normalised over the tokens of the mask, 0 elsewhere; no gradient.

    A_t = Σ_k (γλ)^k δ_{t+k}, δ_t = r_t + γ V_{t+1} - V_t, with V = 0 off the mask; then (A - mean) / sqrt(variance +
    1e-8), the variance divided by the number of tokens.
    """
    values = values.detach() * mask
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    advantages = _discounted(rewards * mask + gamma * following - values, gamma * lam)
    variance, mean = torch.var_mean(advantages[mask], correction=0)
    return (advantages - mean) * torch.rsqrt(variance + 1e-8) * mask


def future_rewards(rewards: Tokens, mask: Mask, gamma: float) -> Tokens:
    """What the critic regresses on: Σ_{k>t} γ^(k-t-1) r_k, without the reward of the token itself; 0 off the mask."""
    totals = _discounted(rewards * mask, gamma)
    return torch.cat([totals[:, 1:], torch.zeros_like(totals[:, :1])], dim=1) * mask


def ppo_loss(
    logps: Tokens,
    old_logps: Tokens,
    values: Tokens,
    advantages: Tokens,
    targets: Tokens,
    mask: Mask,
    cliprange: float,
    critic_coef: float,
    kl_coef: float,
) -> PPOLoss:
    """Offline PPO in one step: policy + critic_coef · critic + kl_coef · kl, each a mean over the tokens of the mask.

    policy: max(-A ρ, -A clip(ρ, cliprange, 1/cliprange)) with ρ = exp(log π - log π_old).
    critic: (V - target)² / 2.
    kl: log π_old - log π.

    Args:
        logps: log π per token.
        old_logps: log π_old per token; in the release the reference's.
        values: V.
        advantages: A, from :func:`gae`.
        targets: from :func:`future_rewards`.
        mask: the completion tokens.
        cliprange: in (0, 1].
        critic_coef: weight of the critic.
        kl_coef: weight of the kl term.

    Returns:
        Per example: the terms, the share of clipped tokens, the ratio Π ρ of the sequence, and as rewards
        log π - log π_old of the sequence.
    """
    log_ratios = (logps - old_logps) * mask
    ratio = log_ratios.exp()
    surrogate, clipped = -advantages * ratio, -advantages * ratio.clamp(cliprange, 1 / cliprange)

    def per_example(quantity: Tensor) -> Tensor:
        return (quantity * mask).sum(1) * len(mask) / mask.sum()

    policy = per_example(torch.maximum(surrogate, clipped))
    critic = per_example(0.5 * (values - targets) ** 2)
    kl = per_example(-log_ratios)
    rewards = log_ratios.detach().sum(1)
    return PPOLoss(
        losses=policy + critic_coef * critic + kl_coef * kl,
        rewards=rewards,
        policy=policy.detach(),
        critic=critic.detach(),
        kl=kl.detach(),
        clip_fraction=per_example((clipped > surrogate).to(logps.dtype)).detach(),
        sequence_ratio=rewards.exp(),
    )


def _discounted(terms: Tokens, factor: float) -> Tokens:
    """y_t = x_t + factor · y_{t+1}."""
    total = torch.zeros_like(terms[:, 0])
    sums = []
    for term in reversed(terms.unbind(1)):
        total = term + factor * total
        sums.append(total)
    return torch.stack(sums[::-1], dim=1)
