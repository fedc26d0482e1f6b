"""PPO's equations against brute force, finite differences and gradients derived by hand; the order of the prompts."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reproalign.ama.align.online.objective import (
    PPOObjective,
    adapted_coefficient,
    advantages_and_returns,
    explained_variance,
    token_rewards,
    whiten,
)
from reproalign.ama.align.online.report import collapse_signs

LENGTHS = (4, 1, 6, 3)


def mask_of(lengths: tuple[int, ...], width: int = 6) -> Tensor:
    return torch.arange(width) < torch.tensor(lengths)[:, None]


def drawn(seed: int, scale: float = 1.0, mask: Tensor | None = None) -> Tensor:
    mask = mask_of(LENGTHS) if mask is None else mask
    values = torch.randn(mask.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return scale * values * mask


def test_shaped_rewards_pay_the_score_at_the_last_token_and_the_penalty_at_each():
    """Eq. 10, token by token and as a sum."""
    mask, logps, ref = mask_of(LENGTHS), drawn(1), drawn(2)
    scores = torch.tensor([2.0, -1.0, 0.5, 3.0], dtype=torch.float64)
    rewards = token_rewards(logps, ref, scores, mask, 0.1)
    for row, length in enumerate(LENGTHS):
        for place in range(6):
            expected = -0.1 * (logps[row, place] - ref[row, place]) + scores[row] * (place == length - 1)
            assert rewards[row, place] == pytest.approx(float(expected) if place < length else 0.0, abs=1e-12)
    # The paper's r - η log(π(y|x) / π_0(y|x)).
    torch.testing.assert_close(rewards.sum(1), scores - 0.1 * (logps - ref).sum(1))


@given(
    seed=st.integers(0, 2**32 - 1),
    gamma=st.floats(0, 1),
    lam=st.floats(0, 1),
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4),
)
def test_advantages_are_the_double_sum(seed, gamma, lam, lengths):
    """R9, by the sum over later tokens."""
    mask = mask_of(tuple(lengths))
    rewards, values = drawn(seed, mask=mask), drawn(seed + 1, mask=mask)
    advantages, returns = advantages_and_returns(rewards, values, mask, gamma, lam)
    for row, length in enumerate(lengths):
        for place in range(6):
            total = 0.0
            for later in range(place, length):
                following = values[row, later + 1] if later + 1 < length else 0.0
                delta = rewards[row, later] + gamma * following - values[row, later]
                total += float((gamma * lam) ** (later - place) * delta)
            assert advantages[row, place] == pytest.approx(total if place < length else 0.0, abs=1e-9)
    torch.testing.assert_close(returns, advantages + values)


def test_with_lambda_one_the_returns_are_the_rewards_to_come():
    mask, rewards = mask_of(LENGTHS), drawn(3)
    _, returns = advantages_and_returns(rewards, drawn(4), mask, 1.0, 1.0)
    torch.testing.assert_close(returns, rewards.flip(1).cumsum(1).flip(1) * mask)


def test_what_stands_behind_a_response_changes_nothing():
    mask, wide = mask_of(LENGTHS), mask_of(LENGTHS, 9)
    rewards, values = drawn(5), drawn(6)
    padded = [torch.nn.functional.pad(matrix, (0, 3)) + 7.0 * ~wide for matrix in (rewards, values)]
    narrow = advantages_and_returns(rewards, values, mask, 0.9, 0.8)
    for found, expected in zip(advantages_and_returns(*padded, wide, 0.9, 0.8), narrow, strict=True):
        torch.testing.assert_close(found[:, :6], expected)
        assert not found[:, 6:].any()
    torch.testing.assert_close(whiten(padded[0], wide)[:, :6], whiten(rewards, mask))


def test_whitened_advantages_have_mean_zero_and_variance_one():
    mask = mask_of(LENGTHS)
    chosen = whiten(drawn(7, 5.0) + 3.0 * mask, mask)[mask]
    assert chosen.mean().item() == pytest.approx(0.0, abs=1e-12)
    assert chosen.var().item() == pytest.approx(1.0, abs=1e-6)
    single = mask_of((1,), 2)
    assert whiten(torch.tensor([[5.0, 0.0]]), single).tolist() == [[0.0, 0.0]]


def arguments() -> dict[str, Tensor]:
    """Ratios and values on both sides of either clip."""
    old_logps, old_values = drawn(11) - 3.0, drawn(12)
    return {
        "logps": old_logps + drawn(13, 0.4),
        "values": old_values + drawn(14, 0.4),
        "old_logps": old_logps,
        "old_values": old_values,
        "advantages": drawn(15),
        "returns": drawn(16),
    }


def test_the_losses_are_those_of_the_equations():
    """R10 and R11, token by token."""
    given, mask = arguments(), mask_of(LENGTHS)
    terms = PPOObjective(clip=0.2, value_clip=0.3, vf_coef=0.1).terms(**given, mask=mask)
    clipped = 0
    for row, place in mask.nonzero().tolist():
        each = {name: float(matrix[row, place]) for name, matrix in given.items()}
        ratio, advantage = math.exp(each["logps"] - each["old_logps"]), each["advantages"]
        policy = max(-advantage * ratio, -advantage * min(max(ratio, 0.8), 1.2))
        near = min(max(each["values"], each["old_values"] - 0.3), each["old_values"] + 0.3)
        value = max((each["values"] - each["returns"]) ** 2, (near - each["returns"]) ** 2) / 2
        assert terms.policy[row, place].item() == pytest.approx(policy)
        assert terms.value[row, place].item() == pytest.approx(value)
        assert terms.ratio[row, place].item() == pytest.approx(ratio)
        clipped += policy != pytest.approx(-advantage * ratio)
    assert 0 < clipped < mask.sum()
    assert terms.policy_clipped.sum().item() == clipped
    assert 0 < terms.value_clipped.sum() < mask.sum()
    for term in terms:
        assert not term[~mask].any()


def test_gradients_are_those_derived_by_hand():
    """R12: dL/dlog π = -A ρ / N where the plain term is the larger, else 0; dL/dV = w (V - R) / N likewise."""
    given, mask = arguments(), mask_of(LENGTHS)
    objective = PPOObjective(clip=0.2, value_clip=0.3, vf_coef=0.1)
    leaves = [given[name].requires_grad_() for name in ("logps", "values")]
    terms = objective.terms(**given, mask=mask)
    by_logps, by_values = torch.autograd.grad(objective.loss(terms, int(mask.sum())), leaves)
    ratio, advantages = (given["logps"] - given["old_logps"]).exp(), given["advantages"]
    improves = torch.where(advantages >= 0, ratio > 1.2, ratio < 0.8)  # beyond the clip, in the direction of A
    expected = torch.where(improves, 0.0, -advantages * ratio) * mask / mask.sum()
    torch.testing.assert_close(by_logps, expected.detach())
    error = given["values"] - given["returns"]
    expected = torch.where(terms.value_clipped.bool(), 0.0, 0.1 * error) * mask / mask.sum()
    torch.testing.assert_close(by_values, expected.detach())


def test_gradients_are_those_of_finite_differences():
    given, mask = arguments(), mask_of(LENGTHS)
    objective = PPOObjective()

    def loss(logps: Tensor, values: Tensor) -> Tensor:
        return objective.loss(objective.terms(**{**given, "logps": logps, "values": values}, mask=mask), 14)

    leaves = (given["logps"].clone().requires_grad_(), given["values"].clone().requires_grad_())
    assert torch.autograd.gradcheck(loss, leaves)


def test_the_adaptive_controller_follows_the_kl():
    for kl, factor in ((6.0, 1.0), (60.0, 1.0 + 0.2 * 512 / 10_000), (0.0, 1.0 - 0.2 * 512 / 10_000)):
        assert adapted_coefficient(0.1, kl, 512, target=6.0, horizon=10_000) == pytest.approx(0.1 * factor)
    assert adapted_coefficient(0.1, 6.6, 512, target=6.0, horizon=10_000) == pytest.approx(0.1 * (1 + 0.1 * 0.0512))


def test_explained_variance_is_one_for_the_returns_and_zero_for_a_constant():
    mask, returns = mask_of(LENGTHS), drawn(21)
    assert explained_variance(returns, returns, mask) == pytest.approx(1.0)
    assert explained_variance(torch.ones_like(returns) * mask, returns, mask) == pytest.approx(0.0)
    assert explained_variance(returns, torch.zeros_like(returns), mask) == 0.0


def test_signs_of_a_collapse_are_named():
    first = {"step": 1, "reward": 1.0, "reward_stderr": 0.1, "length": 80.0, "cut_sentences": 0.1, "kl": 0.0}
    assert collapse_signs([first]) == []
    assert collapse_signs([first, {**first, "step": 2, "reward": 1.4, "kl": 3.0}]) == []
    for change, words in (
        ({"reward": 0.2}, "the reward is 0.200, after 1.000 in iteration 1"),
        ({"length": 39.0}, "responses have 39 tokens, after 80 at first"),
        ({"cut_sentences": 0.35}, "35% end within a sentence, after 10% at first"),
        ({"kl": -1.5}, "the KL is estimated as -1.50"),
    ):
        assert collapse_signs([first, {**first, "step": 2, **change}]) == [words]
