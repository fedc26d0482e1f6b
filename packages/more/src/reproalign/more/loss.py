r"""The ranking loss, per domain and weighted, and its gradient in the reward head.

An item has R responses with rewards z and scores s; s < 0 marks a response that is not there. Its ordered pairs are

    P = {(i, j): s_i ≠ s_j, s_i ≥ 0, s_j ≥ 0}

so that every two responses of different scores count twice. With Δ_bij = sign(s_bi - s_bj)(z_bi - z_bj) of items b,

    L = 1/|P| Σ_P -log σ(Δ_bij),   0 if P is empty                                                        (eq. 1)

The sum's derivative in a reward is ∂/∂z_bi = -2 Σ_j σ(-Δ_bij) sign(s_bi - s_bj): (i, j) and (j, i) give the same.
With z = w · h the gradient in the head w, features h held fixed, is Σ_bi (∂/∂z_bi) h_bi: one product of a (domains,
responses) with a (responses, hidden) matrix gives it for all domains (R1).

Over K domains the model is trained on a mean over each domain's own pairs, λ on the simplex,

    L = Σ_k λ_k L_k,   L_k = 1/|P_k| Σ_{P_k} -log σ(Δ)                                                    (eq. 7)

λ_k = 1/K are equal weights; λ_k = |P_k| / |P| is plain mixing, the mean over all pairs alike (MultiTask). Numbers of
equations are the paper's (eq.) or the README's (R).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid, one_hot


@dataclass(frozen=True)
class DomainSums:
    """Sums over the pairs of each domain in a batch; those of several batches or processes may be added.

    Attributes:
        losses: Σ -log σ(Δ).
        pairs: ordered pairs |P_k|.
        right: pairs with Δ > 0, those with Δ = 0 counted half.
        items: items, those without pairs included.
        gradients: Σ of the derivative of ``losses`` in the head's weight.
    """

    losses: Float[Tensor, " domains"]
    pairs: Float[Tensor, " domains"]
    right: Float[Tensor, " domains"]
    items: Float[Tensor, " domains"]
    gradients: Float[Tensor, "domains hidden"]

    def flat(self) -> Float[Tensor, "domains columns"]:
        """Return all sums as one matrix, to be reduced in one call."""
        return torch.cat([torch.stack([self.losses, self.pairs, self.right, self.items], 1), self.gradients], 1)

    @staticmethod
    def from_flat(matrix: Float[Tensor, "domains columns"]) -> DomainSums:
        """Undo :meth:`flat`."""
        losses, pairs, right, items = matrix[:, :4].unbind(1)
        return DomainSums(losses, pairs, right, items, matrix[:, 4:])

    def mean_losses(self) -> Float[Tensor, " domains"]:
        """L_k, 0 for a domain without pairs."""
        return self.losses / self.pairs.clamp(min=1)

    def mean_gradients(self) -> Float[Tensor, "domains hidden"]:
        """g_k = ∂L_k/∂w (R1), 0 for a domain without pairs."""
        return self.gradients / self.pairs.clamp(min=1)[:, None]


def pair_signs(scores: Float[Tensor, "items responses"]) -> Float[Tensor, "items responses responses"]:
    """sign(s_i - s_j), 0 where (i, j) is no pair."""
    known = scores >= 0
    both = known[:, :, None] & known[:, None, :]
    return torch.sign(scores[:, :, None] - scores[:, None, :]) * both


def pair_losses(
    rewards: Float[Tensor, "items responses"], signs: Float[Tensor, "items responses responses"]
) -> Float[Tensor, "items responses responses"]:
    """-log σ(Δ) of every ordered pair, the terms of eq. 1; 0 where there is no pair."""
    delta = signs * (rewards[:, :, None] - rewards[:, None, :])
    return -logsigmoid(delta) * signs.abs()


def ranking_loss(
    rewards: Float[Tensor, "items responses"], scores: Float[Tensor, "items responses"]
) -> Float[Tensor, ""]:
    """Mean of -log σ(Δ) over the ordered pairs of all items (eq. 1)."""
    signs = pair_signs(scores)
    return pair_losses(rewards, signs).sum() / signs.abs().sum().clamp(min=1)


def domain_loss(
    rewards: Float[Tensor, "items responses"],
    scores: Float[Tensor, "items responses"],
    domain: Int[Tensor, " items"],
    weights: Float[Tensor, " domains"],
    pairs: Float[Tensor, " domains"],
) -> Float[Tensor, ""]:
    """Σ_k λ_k Σ_{P_k} -log σ(Δ) / |P_k| over these items: their part of eq. 7.

    The parts of all micro-batches and processes of a step, each given the step's λ and |P_k|, add up to eq. 7.

    Args:
        rewards: z.
        scores: s.
        domain: of each item, counted from 0.
        weights: λ.
        pairs: |P_k| of the whole step, of which these items are all or a part.
    """
    losses = pair_losses(rewards, pair_signs(scores)).sum((1, 2))
    return (losses * (weights / pairs.clamp(min=1))[domain]).sum()


def count_pairs(scores: Float[Tensor, "items responses"], domain: Int[Tensor, " items"], domains: int) -> DomainSums:
    """Count items and pairs by domain; what takes rewards is 0, and the gradients have no columns."""
    member = one_hot(domain, domains).to(scores.dtype)
    pairs = member.T @ pair_signs(scores).abs().sum((1, 2))
    nothing = torch.zeros_like(pairs)
    return DomainSums(nothing, pairs, nothing, member.sum(0), scores.new_zeros(domains, 0))


def domain_sums(
    features: Float[Tensor, "rows hidden"],
    rewards: Float[Tensor, "items responses"],
    scores: Float[Tensor, "items responses"],
    slot: Int[Tensor, " rows"],
    domain: Int[Tensor, " items"],
    domains: int,
) -> DomainSums:
    """Sum losses (eq. 1) and head gradients (R1) by domain, in closed form; nothing leaves the device.

    Args:
        features: h of the responses that are there.
        rewards: z, anything where a response is not there.
        scores: s.
        slot: item · responses + response of each row of ``features``.
        domain: of each item, counted from 0.
        domains: how many there are.
    """
    z = rewards.detach()
    signs = pair_signs(scores).to(z.dtype)
    delta = signs * (z[:, :, None] - z[:, None, :])
    derivatives = -2 * (torch.sigmoid(-delta) * signs).sum(2)
    member = one_hot(domain, domains).to(z.dtype)
    of_rows = derivatives.flatten()[slot, None] * member[slot // scores.shape[1]]
    return DomainSums(
        losses=member.T @ (-logsigmoid(delta) * signs.abs()).sum((1, 2)),
        pairs=member.T @ signs.abs().sum((1, 2)),
        right=member.T @ ((1 + torch.sign(delta)) / 2 * signs.abs()).sum((1, 2)),
        items=member.sum(0),
        gradients=of_rows.T @ features.detach().to(z.dtype),
    )
