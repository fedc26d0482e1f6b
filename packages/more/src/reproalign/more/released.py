"""What the release does differently: the two tables of rules, and the release's own functions.

How its weights meet the rows of a batch (``compute_more_loss`` of its ``trainer.py``):

A row is an item. With resampling a batch of B groups is laid out by domain, B rows of each; without, as it was drawn.
The release makes weights for K domains and then walks along weights and rows together, so that with more than one group
it is the first K *rows* that are read and weighted; without reweighting it walks along a dictionary, i.e. its keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from reproalign.common.options.shared import by_variant
from reproalign.common.training.collecting import Factor
from reproalign.more.balance import TINY, Balance, Balancer, no_momentum, with_pairs
from reproalign.more.groups import resample_copies, resample_released
from reproalign.more.items import prepare_released, ranked
from reproalign.more.loss import DomainSums, domain_sums, pair_losses, pair_signs
from reproalign.more.rules import MoreRules

UNIFORM = 3  # the release takes the length of the batch, a dictionary of 3 keys, for the number of domains (ERRATA Q5)
WARMUP = 2  # steps that DeepSpeed's WarmupDecayLR warms up at least


@dataclass(frozen=True)
class RowWeights:
    """Weights of the first rows of a batch, in their order: rows beyond them get no loss, and weights beyond them none.

    Attributes:
        weights: one each.
        balance: λ by domain, where it was computed.
    """

    weights: Float[Tensor, " weights"]
    balance: Balance | None


def row_weights(
    balancer: Balancer,
    features: Float[Tensor, "responses hidden"],
    rewards: Float[Tensor, "rows width"],
    scores: Float[Tensor, "rows width"],
    slot: Int[Tensor, " responses"],
    domain: Int[Tensor, " rows"],
    *,
    grouped: bool,
) -> RowWeights:
    """Return the weights that the release walks along with the rows.

    With resampling (``grouped``):

    - min-norm, fixed: λ, of row i taken for domain i: K weights, which meet the first K rows (ERRATA Q18).
    - uniform: 1/3, three times (ERRATA Q5).

    Without:

    - min-norm, fixed: each row has the weight of its domain.
    - uniform: the *numbers* of the n domains, in the order in which they come, meet the first n rows (ERRATA Q19).

    Args:
        balancer: its momentum moves on.
        features: h of the responses that are there.
        rewards: z.
        scores: s.
        slot: row · width + response of each row of ``features``.
        domain: of each row, counted from 0.
        grouped: whether the batch is of groups.
    """
    uniform = balancer.config.rule == "uniform"
    if uniform and grouped:
        return RowWeights(scores.new_full((UNIFORM,), 1 / UNIFORM), None)
    if uniform:
        numbers = list(dict.fromkeys(domain.tolist()))
        return RowWeights(scores.new_tensor(numbers), None)
    domains = len(balancer.domains)
    if grouped:
        read = slot < domains * scores.shape[1]
        features, slot = features[read], slot[read]
        rewards, scores = rewards[:domains], scores[:domains]
        domain = torch.arange(domains, device=domain.device)
    balance = balancer.step(domain_sums(features, rewards, scores, slot, domain, domains), grouped=grouped)
    return RowWeights(balance.weights if grouped else balance.weights[domain], balance)


def rows_loss(
    rewards: Float[Tensor, "rows width"],
    scores: Float[Tensor, "rows width"],
    weights: Float[Tensor, " weights"],
    domain: Int[Tensor, " rows"],
    *,
    grouped: bool,
) -> Float[Tensor, ""]:
    """F Σ_i λ_i Σ_P(i) -log σ(Δ) / |P| over the rows i that have a weight, P the pairs of *all* rows; 0 without pairs.

    F is the number of weights if ``grouped``, else that of the domains in the batch.
    """
    signs = pair_signs(scores)
    losses = pair_losses(rewards, signs).sum((1, 2))
    met = min(len(weights), len(losses))
    factor = len(weights) if grouped else len(domain.unique())
    return factor * (losses[:met] * weights[:met]).sum() / signs.abs().sum().clamp(min=1)


def warmup_decay(steps: int, warmup: int) -> Factor:
    """Return DeepSpeed's WarmupDecayLR as the release's configuration has it: a logarithmic rise, then a linear fall.

    With W = max(2, warmup) step s = 0, 1, … of T has the factor log(s) / log(W) up to s = W, 0 for s = 0, and
    (T - s + 1) / (T - W) from then on: the first two steps of a published run move nothing (ERRATA Q20).

    Args:
        steps: T.
        warmup: warm-up steps.
    """
    warm = max(WARMUP, warmup)

    def factor(step: int) -> float:
        if step - 1 < warm:
            return math.log(max(step, 1)) / math.log(warm)
        return max(0.0, (steps - (step - 1)) / max(1, steps - warm))

    return factor


def all_of_a_group(sums: DomainSums, *, grouped: bool) -> Bool[Tensor, " domains"]:
    """Return which domains take part: all in a batch of groups, otherwise those with items, pairs or not."""
    return torch.ones_like(sums.items, dtype=torch.bool) if grouped else sums.items > 0


def momentum_of_a_layer(domains: int, hidden: int, seed: int) -> Float[Tensor, "domains hidden"]:
    """Return m before the first step: the weight of one freshly initialised linear layer, for all domains."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Linear(hidden, 1, bias=False).weight.detach().repeat(domains, 1)


PAPER = MoreRules(
    weights={"normalize": "none", "alpha": 1.0, "solver": "exact"},
    whole_step=True,
    present=with_pairs,
    momentum=no_momentum,
    least_loss=TINY,
    by_domain=False,
    warmup_decay=False,
    comparable=ranked,
    resample=resample_copies,
    ties="wrong",
    release_judge=False,
)
RELEASED = MoreRules(
    weights={"normalize": "l2", "alpha": 0.99, "solver": "frank-wolfe"},  # the README's command, which calls α momentum
    whole_step=False,
    present=all_of_a_group,
    momentum=momentum_of_a_layer,
    least_loss=0.0,
    by_domain=True,
    warmup_decay=True,
    comparable=prepare_released,
    resample=resample_released,
    ties="half",
    release_judge=True,
)


def rules_of(variant: str) -> MoreRules:
    """Return the rules of a variant, see :func:`~reproalign.common.options.shared.by_variant`."""
    return by_variant(variant, paper=PAPER, released=RELEASED)
