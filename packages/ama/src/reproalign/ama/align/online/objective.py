r"""The equations of PPO on the tokens of responses (Schulman et al., 2017; Ziegler et al., 2019; AMA, eq. 10).

A response y_1 … y_T to the prompt x is a path: the state s_t is (x, y_<t), the action y_t. π is the policy, π_old the
one that drew the responses, π_0 the reference, V the value head, r(x, y) the reward less its baseline. As in TRL's PPO,
which the paper used:

    r_t = -η log(π_old(y_t|s_t) / π_0(y_t|s_t)) + [t = T] r(x, y)        the shaped reward, token by token    (eq. 10)
    δ_t = r_t + γ V(s_{t+1}) - V(s_t),  V(s_{T+1}) = 0                                                            (R9)
    A_t = Σ_k (γλ)^k δ_{t+k},  R_t = A_t + V(s_t)                       advantages and returns of V_old           (R9)
    L_π = mean max(-A_t ρ_t, -A_t clip(ρ_t, 1-c, 1+c)),  ρ_t = π/π_old                                           (R10)
    L_V = mean max((V - R)², (V_c - R)²) / 2,  V_c = V clipped to V_old ± c_V                                    (R11)
    L = L_π + w L_V                                                                                              (R12)

Summed over a response, r_t with γ = 1 is r(x, y) - η log(π(y|x) / π_0(y|x)), the paper's shaped reward. Matrices are
(responses, tokens) with a mask of the tokens there are; all is 0 off the mask. Numbers of equations are the paper's
(eq.) or the README's (R).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Tokens = Float[Tensor, "responses tokens"]
Mask = Bool[Tensor, "responses tokens"]

_EPSILON = 1e-8  # TRL's, in the whitening


def token_rewards(
    logps: Tokens, ref_logps: Tokens, scores: Float[Tensor, " responses"], mask: Mask, eta: float
) -> Tokens:
    """Shaped rewards r_t, token by token (eq. 10).

    Args:
        logps: log π_old.
        ref_logps: log π_0.
        scores: r(x, y), less the baseline.
        mask: the tokens of the responses, at least one in each.
        eta: coefficient of the KL penalty.
    """
    last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
    return (-eta * (logps - ref_logps) + scores[:, None] * last) * mask


def advantages_and_returns(
    rewards: Tokens, values: Tokens, mask: Mask, gamma: float, lam: float
) -> tuple[Tokens, Tokens]:
    """Generalised advantage estimates and returns (R9); no gradient.

    Args:
        rewards: from :func:`token_rewards`.
        values: V_old of the state before each token.
        mask: the tokens of the responses, which stand at the beginning of the rows.
        gamma: discount γ.
        lam: λ.
    """
    values = values.detach() * mask
    following = torch.nn.functional.pad(values[:, 1:], (0, 1))
    deltas = (rewards.detach() + gamma * following) * mask - values
    carried = torch.zeros_like(deltas[:, 0])
    found = []
    for delta in reversed(deltas.unbind(1)):
        carried = delta + gamma * lam * carried
        found.append(carried)
    advantages = torch.stack(found[::-1], dim=1) * mask
    return advantages, advantages + values


def whiten(values: Tokens, mask: Mask) -> Tokens:
    """Shift and scale to mean 0 and variance 1 over the tokens of the mask: (A - mean) / sqrt(variance + 1e-8).

    The variance is the unbiased one (one token less in the denominator), as in TRL; a single token is only shifted.
    """
    chosen = values[mask]
    mean, variance = chosen.mean(), chosen.var(correction=min(1, len(chosen) - 1))
    return (values - mean) * torch.rsqrt(variance + _EPSILON) * mask


def explained_variance(values: Tokens, returns: Tokens, mask: Mask) -> float:
    """1 - Var(R - V) / Var(R) over the tokens of the mask; 0 where the returns are all the same."""
    variance = returns[mask].var(correction=0)
    unexplained = (returns - values)[mask].var(correction=0)
    return float(1 - unexplained / variance) if variance > 0 else 0.0


class Terms(NamedTuple):
    """Per token; 0 off the mask. Only ``policy`` and ``value`` carry a gradient."""

    policy: Tensor
    value: Tensor
    ratio: Tensor
    policy_clipped: Tensor
    value_clipped: Tensor
    squared_log_ratio: Tensor


@dataclass(frozen=True)
class PPOObjective:
    """The loss of a mini-batch (R10), (R11), (R12), token by token.

    Attributes:
        clip: c, of the ratio, above 0.
        value_clip: c_V, of the value, above 0.
        vf_coef: w, weight of the value loss, at least 0.
    """

    clip: float = 0.2
    value_clip: float = 0.2
    vf_coef: float = 0.1

    def terms(
        self,
        logps: Tokens,
        values: Tokens,
        old_logps: Tokens,
        old_values: Tokens,
        advantages: Tokens,
        returns: Tokens,
        mask: Mask,
    ) -> Terms:
        """Return the parts of the loss, and what is logged of it.

        Args:
            logps: log π.
            values: V.
            old_logps: log π_old.
            old_values: V_old.
            advantages: A, whitened.
            returns: R.
            mask: the tokens of the responses.
        """
        log_ratios = (logps - old_logps) * mask
        ratio = log_ratios.exp()
        plain, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - self.clip, 1 + self.clip)
        near = torch.clamp(values, old_values - self.value_clip, old_values + self.value_clip)
        error, clipped_error = (values - returns) ** 2, (near - returns) ** 2
        return Terms(
            policy=torch.maximum(plain, clipped) * mask,
            value=0.5 * torch.maximum(error, clipped_error) * mask,
            ratio=ratio.detach() * mask,
            policy_clipped=((clipped > plain) & mask).to(logps.dtype),
            value_clipped=((clipped_error > error) & mask).to(logps.dtype),
            squared_log_ratio=log_ratios.detach() ** 2,
        )

    def loss(self, terms: Terms, tokens: int) -> Float[Tensor, ""]:
        """Return L (R12), each mean a sum over the terms divided by ``tokens``, those of the whole mini-batch."""
        return (terms.policy.sum() + self.vf_coef * terms.value.sum()) / tokens


def adapted_coefficient(coef: float, kl: float, responses: int, *, target: float, horizon: int) -> float:
    """Return the next η of TRL's adaptive controller (Ziegler et al., 2019, section 2.2).

    η ← η (1 + e n / horizon), e = clip(KL / target - 1, -0.2, 0.2): larger where the KL is above the target.

    Args:
        coef: η.
        kl: mean log(π_old(y|x) / π_0(y|x)) of the iteration's responses, in nats.
        responses: n, how many they are.
        target: of the KL, in nats.
        horizon: responses over which η adapts.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coef * (1 + error * responses / horizon)
