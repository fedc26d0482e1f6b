r"""MMPO's losses on log-probabilities and rewards.

Symbols: h = (log π(y_w|x) - log π(y_l|x)) - (log π_ref(y_w|x) - log π_ref(y_l|x)), log-probs summed over the response;
β the DPO temperature; q the target probability that y_w is preferred; σ the logistic function.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from reproalign.common.errors import UserError, choose
from reproalign.mmpo.config import LossConfig

LOSSES = ("sigmoid", "hinge", "ipo", "kto_pair")
VARIANTS = ("paper", "released")

Pairs = Float[Tensor, " pairs"]


@dataclass(frozen=True)
class PairLoss:
    """Losses (one per pair; two per pair for ``kto_pair``) and implicit rewards β (log π - log π_ref), detached."""

    losses: Float[Tensor, " losses"]
    chosen_rewards: Pairs
    rejected_rewards: Pairs


def sigmoid_loss(h: Pairs, q: Pairs, beta: float) -> Pairs:
    """MMPO on DPO: -q log σ(βh) - (1-q) log σ(-βh) = softplus(-βh) + (1-q) βh.

    The binary cross-entropy of the Bradley-Terry probability σ(βh) against q; its gradient in h is β(σ(βh) - q) and its
    minimiser βh = γm. q = 1 is DPO, q = 1-ε for all pairs is conservative DPO. Written as two softplus terms: the
    second form subtracts large numbers when βh is large.
    """
    return q * softplus(-beta * h) + (1 - q) * softplus(beta * h)


def hinge_loss(h: Pairs, beta: float) -> Pairs:
    """SLiC-style hinge: max(0, 1 - βh)."""
    return torch.relu(1 - beta * h)


def ipo_loss(h: Pairs, beta: float) -> Pairs:
    """IPO: (h - 1/(2β))²."""
    return (h - 1 / (2 * beta)) ** 2


def kto_pair_loss(chosen: Pairs, rejected: Pairs, beta: float) -> Float[Tensor, " losses"]:
    """KTO on pairs: 1 - σ(β(c - K_r)) for chosen, then 1 - σ(β(K_c - d)) for rejected.

    c and d are the policy-to-reference log-ratios of chosen and rejected; K_c = max(0, mean c) and K_r = max(0, mean d)
    over the micro-batch. Gradients flow through K, as released.
    """
    mean_chosen, mean_rejected = chosen.mean().clamp(min=0), rejected.mean().clamp(min=0)
    return torch.cat(
        [1 - torch.sigmoid(beta * (chosen - mean_rejected)), 1 - torch.sigmoid(beta * (mean_chosen - rejected))]
    )


def check_loss(config: LossConfig, variant: str) -> None:
    """Check the options of a loss before anything is loaded, and say what will be ignored.

    Raises:
        UserError: for an unknown loss or variant, β <= 0, or label smoothing outside [0, 1/2).
    """
    choose("loss.type", config.type, LOSSES)
    choose("variant", variant, VARIANTS)
    if not (math.isfinite(config.beta) and config.beta > 0):
        raise UserError(f"loss.beta={config.beta} must be positive")
    if not 0 <= config.label_smoothing < 0.5:
        raise UserError(f"loss.label_smoothing={config.label_smoothing} must be in [0, 0.5)")
    if config.type != "sigmoid" and not config.soft:
        warnings.warn(
            f"loss.type={config.type} does not use the margin (as released); set loss.soft=true to weigh both "
            "directions with it",
            UserWarning,
            stacklevel=2,
        )


def pair_loss(
    config: LossConfig,
    variant: str,
    policy_chosen: Pairs,
    policy_rejected: Pairs,
    ref_chosen: Pairs,
    ref_rejected: Pairs,
    p_chosen: Pairs | None = None,
) -> PairLoss:
    """Compute the configured loss.

    Args:
        config: type, β, smoothing ε, ``soft`` (q·l(h) + (1-q)·l(-h) for hinge, IPO and KTO), ``reference_free``.
        variant: ``released`` ignores ε where q is given; ``paper`` uses q' = (1-ε) q + ε (1-q).
        policy_chosen: log π(y_w|x).
        policy_rejected: log π(y_l|x).
        ref_chosen: log π_ref(y_w|x).
        ref_rejected: log π_ref(y_l|x).
        p_chosen: q; None means 1.

    Raises:
        ValueError: for an unknown loss type.
    """
    if config.reference_free:
        ref_chosen, ref_rejected = torch.zeros_like(ref_chosen), torch.zeros_like(ref_rejected)
    chosen, rejected = policy_chosen - ref_chosen, policy_rejected - ref_rejected
    q = _targets(config, variant, chosen, p_chosen)
    losses = _losses(config, chosen, rejected, q, soft=config.soft)
    beta = config.beta
    return PairLoss(losses, (beta * chosen).detach(), (beta * rejected).detach())


def _targets(config: LossConfig, variant: str, like: Pairs, p_chosen: Pairs | None) -> Pairs:
    epsilon = config.label_smoothing
    if p_chosen is None:
        return torch.full_like(like, 1 - epsilon)
    q = p_chosen.to(like.dtype)
    return q if variant == "released" else (1 - epsilon) * q + epsilon * (1 - q)


def _losses(config: LossConfig, chosen: Pairs, rejected: Pairs, q: Pairs, *, soft: bool) -> Float[Tensor, " losses"]:
    beta = config.beta
    if config.type == "sigmoid":
        return sigmoid_loss(chosen - rejected, q, beta)
    if config.type == "kto_pair":
        if not soft:
            return kto_pair_loss(chosen, rejected, beta)
        weight = torch.cat([q, q])
        # Swapped roles: the second half of the swapped losses belongs to the chosen responses.
        swapped = kto_pair_loss(rejected, chosen, beta).roll(len(q))
        return weight * kto_pair_loss(chosen, rejected, beta) + (1 - weight) * swapped
    if config.type not in LOSSES:
        raise ValueError(f"unknown loss type '{config.type}'; choose one of {', '.join(LOSSES)}")
    loss = hinge_loss if config.type == "hinge" else ipo_loss
    h = chosen - rejected
    return q * loss(h, beta) + (1 - q) * loss(-h, beta) if soft else loss(h, beta)


def reward_loss(
    chosen: Pairs,
    rejected: Pairs,
    p_chosen: Pairs,
    *,
    margin: Pairs | None = None,
    broadcast_compat: bool = False,
) -> Pairs:
    r"""Reward-model loss: q softplus(-d) + (1-q) softplus(d) per pair, with d = r(x, y_w) - r(x, y_l).

    Args:
        chosen: r(x, y_w).
        rejected: r(x, y_l).
        p_chosen: q.
        margin: if given, softplus(-(d - margin)) and q is not used.
        broadcast_compat: the release subtracts (B, 1) rewards and multiplies by (B,) targets, so that every pair meets
            every target and the mean is that of q̄ softplus(-d) + (1-q̄) softplus(d), with q̄ the micro-batch mean
            (with ``margin`` likewise d_i - margin_j). True gives losses with this mean.
    """
    d = chosen - rejected
    if margin is not None:
        return softplus(margin[None, :] - d[:, None]).mean(1) if broadcast_compat else softplus(margin - d)
    q = p_chosen.to(d.dtype)
    if broadcast_compat:
        q = q.mean().expand_as(q)
    return q * softplus(-d) + (1 - q) * softplus(d)


def softplus(x: Tensor) -> Tensor:
    """log(1 + e^x); torch's own is cut off to x above 20, which shows in float64."""
    return -logsigmoid(-x)
