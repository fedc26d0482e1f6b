"""The ranking loss, eq. 7 over domains, and the head's gradients by domain."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from reproalign.more.loss import DomainSums, count_pairs, domain_loss, domain_sums, pair_signs, ranking_loss


def brute_force(rewards: Tensor, scores: Tensor) -> float:
    """The mean over ordered pairs, as the paper writes it."""
    terms = [
        math.log1p(math.exp(-float((z[i] - z[j]) * (1 if s[i] > s[j] else -1))))
        for z, s in zip(rewards, scores, strict=True)
        for i, j in itertools.permutations(range(len(s)), 2)
        if s[i] != s[j] and s[i] >= 0 and s[j] >= 0
    ]
    return sum(terms) / len(terms) if terms else 0.0


def problem(items: int = 7, responses: int = 4, hidden: int = 5, domains: int = 3, seed: int = 0):
    """Random items; some responses are missing, some scores tied, some domains may be absent."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(items * responses, hidden, generator=generator, dtype=torch.float64)
    scores = torch.randint(-1, 3, (items, responses), generator=generator).double()
    domain = torch.randint(0, domains, (items,), generator=generator)
    head = torch.randn(hidden, generator=generator, dtype=torch.float64)
    slot = (scores.flatten() >= 0).nonzero().flatten()
    return features, scores, domain, head, slot


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_ranking_loss_is_the_mean_over_ordered_pairs(seed: int, items: int, responses: int) -> None:
    """Eq. 1, against a loop over all pairs of responses."""
    features, scores, _, head, _ = problem(items, responses, seed=seed)
    rewards = (features @ head).view(items, responses)
    assert ranking_loss(rewards, scores).item() == pytest.approx(brute_force(rewards, scores), abs=1e-12)


def test_without_pairs_the_loss_is_zero_and_so_is_its_gradient() -> None:
    rewards = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    loss = ranking_loss(rewards, torch.tensor([[1.0, 1.0], [-1.0, 0.0]], dtype=torch.float64))
    loss.backward()
    assert loss.item() == 0
    assert rewards.grad is not None
    assert not rewards.grad.any()


def test_ranking_loss_gradcheck() -> None:
    features, scores, domain, head, _ = problem()
    rewards = (features @ head).view_as(scores).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: ranking_loss(z, scores), (rewards,))
    weights, pairs = torch.rand(3, dtype=torch.float64), count_pairs(scores, domain, 3).pairs
    assert torch.autograd.gradcheck(lambda z: domain_loss(z, scores, domain, weights, pairs), (rewards,))


def test_large_margins_neither_overflow_nor_vanish() -> None:
    rewards = torch.tensor([[-500.0, 500.0]], requires_grad=True)
    loss = ranking_loss(rewards, torch.tensor([[1.0, 0.0]]))
    loss.backward()
    assert loss.item() == 1000.0
    assert rewards.grad is not None
    assert rewards.grad.tolist() == [[-1.0, 1.0]]


def of_domains(seed: int = 0, domains: int = 3) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rewards, scores, domains of items, and the pairs of each domain."""
    features, scores, domain, head, _ = problem(domains=domains, seed=seed)
    return (features @ head).view_as(scores), scores, domain, count_pairs(scores, domain, domains).pairs


@given(st.integers(0, 10_000), st.integers(1, 5))
@settings(max_examples=40, deadline=None)
def test_eq_7_weights_the_mean_of_each_domain_s_own_pairs(seed: int, domains: int) -> None:
    rewards, scores, domain, pairs = of_domains(seed, domains)
    weights = torch.rand(domains, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    means = [brute_force(rewards[domain == k], scores[domain == k]) for k in range(domains)]
    expected = sum(float(weight) * mean for weight, mean in zip(weights, means, strict=True))
    assert domain_loss(rewards, scores, domain, weights, pairs).item() == pytest.approx(expected, abs=1e-12)


def test_eq_7_of_three_domains_with_unequal_counts() -> None:
    """No factor K, and no mean over all pairs: 2, 2 and 1 pairs whose losses are log 2, 2 log 2 and 4 log 2."""
    margins = [-math.log(2**n - 1) for n in (1, 1, 2, 2, 4)]
    rewards = torch.tensor([[m, 0.0] for m in margins], dtype=torch.float64)
    scores, domain = torch.tensor([[1.0, 0.0]] * 5, dtype=torch.float64), torch.tensor([0, 0, 1, 1, 2])
    pairs = count_pairs(scores, domain, 3).pairs
    assert pairs.tolist() == [4, 4, 2]  # each in both orders
    weights = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    found = domain_loss(rewards, scores, domain, weights, pairs).item()
    assert found == pytest.approx(math.log(2) * (0.5 * 1 + 0.25 * 2 + 0.25 * 4))
    uniform = domain_loss(rewards, scores, domain, torch.full((3,), 1 / 3, dtype=torch.float64), pairs).item()
    assert uniform == pytest.approx(math.log(2) * 7 / 3)
    assert ranking_loss(rewards, scores).item() == pytest.approx(math.log(2) * 10 / 5)  # plain mixing


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_weights_by_pairs_give_plain_mixing(seed: int) -> None:
    rewards, scores, domain, pairs = of_domains(seed)
    mixed = domain_loss(rewards, scores, domain, pairs / pairs.sum().clamp(min=1), pairs)
    assert mixed.item() == pytest.approx(ranking_loss(rewards, scores).item(), abs=1e-12)


def test_parts_of_a_step_add_up_to_its_loss() -> None:
    rewards, scores, domain, pairs = of_domains()
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    whole = domain_loss(rewards, scores, domain, weights, pairs)
    parts = [domain_loss(rewards[p], scores[p], domain[p], weights, pairs) for p in (slice(0, 1), slice(1, 7))]
    torch.testing.assert_close(parts[0] + parts[1], whole, rtol=0, atol=1e-14)


def test_pairs_are_counted_as_the_sums_count_them() -> None:
    features, scores, domain, head, slot = problem()
    sums = domain_sums(features[slot], (features @ head).view_as(scores), scores, slot, domain, 3)
    counted = count_pairs(scores, domain, 3)
    assert torch.equal(counted.pairs, sums.pairs)
    assert torch.equal(counted.items, sums.items)


@given(st.integers(0, 10_000), st.integers(1, 6))
@settings(max_examples=30, deadline=None)
def test_head_gradients_equal_autograd_s(seed: int, domains: int) -> None:
    """R1: the closed form of the head's gradients by domain, against autograd."""
    features, scores, domain, head, slot = problem(domains=domains, seed=seed)
    rewards = (features @ head).view_as(scores)
    sums = domain_sums(features[slot], rewards, scores, slot, domain, domains)
    losses, gradients = sums.mean_losses(), sums.mean_gradients()
    for k in range(domains):
        weight = head.clone().requires_grad_()
        of_domain = domain == k
        loss = ranking_loss((features @ weight).view_as(scores)[of_domain], scores[of_domain])
        (expected,) = torch.autograd.grad(loss, weight) if of_domain.any() else (torch.zeros_like(weight),)
        torch.testing.assert_close(gradients[k], expected, rtol=0, atol=1e-12)
        assert losses[k].item() == pytest.approx(loss.item(), abs=1e-12)
        assert sums.pairs[k] == (pair_signs(scores)[of_domain] != 0).sum()


def test_head_gradients_equal_those_of_a_linear_layer_in_a_network() -> None:
    features, scores, domain, _, slot = problem()
    layer = nn.Linear(5, 1, bias=False, dtype=torch.float64)
    rows = layer(features[slot]).squeeze(-1)
    rewards = torch.zeros(scores.numel(), dtype=torch.float64).scatter(0, slot, rows).view_as(scores)
    sums = domain_sums(features[slot], rewards, scores, slot, domain, 3)
    total = ranking_loss(rewards, scores)
    (expected,) = torch.autograd.grad(total, layer.weight)
    torch.testing.assert_close(sums.gradients.sum(0, keepdim=True) / sums.pairs.sum(), expected, rtol=0, atol=1e-12)


def test_sums_of_parts_add_up_to_those_of_the_batch() -> None:
    features, scores, domain, head, _ = problem()
    rewards, width = (features @ head).view_as(scores), scores.shape[1]
    whole = domain_sums(features, rewards, scores, torch.arange(scores.numel()), domain, 3)
    parts = []
    for half in (slice(0, 3), slice(3, 7)):
        rows = slice(half.start * width, half.stop * width)
        slot = torch.arange(scores[half].numel())
        parts.append(domain_sums(features[rows], rewards[half], scores[half], slot, domain[half], 3).flat())
    torch.testing.assert_close(DomainSums.from_flat(parts[0] + parts[1]).flat(), whole.flat(), rtol=0, atol=1e-12)


def test_right_counts_ties_of_rewards_half() -> None:
    rewards = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]])
    scores = torch.tensor([[1.0, 0.0]] * 3)
    sums = domain_sums(torch.ones(6, 1), rewards, scores, torch.arange(6), torch.zeros(3, dtype=torch.long), 1)
    assert sums.right.tolist() == [3.0]  # of 6 ordered pairs
