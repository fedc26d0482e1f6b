"""The losses against their defining properties, brute force, and TRL's DPO."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reproalign.common.training.objective import Pairs, PairScores, Responses
from reproalign.common.training.reward import RewardPairs
from reproalign.mmpo.objective import MMPO, OBJECTIVES, Hinge, MarginObjective, MMPOReward

numbers = st.floats(-30, 30)
probabilities = st.floats(0, 1)
betas = st.floats(0.001, 2)
SOFT = [kind for kind in OBJECTIVES if kind != "sigmoid"]


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def logps(count: int = 5, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [-50 + 10 * torch.randn(count, generator=generator, dtype=torch.float64) for _ in range(4)]


def scores(objective: MarginObjective, values: list[Tensor], q: Tensor | None) -> PairScores:
    """Of log-probs of the policy, chosen and rejected, and of its reference."""
    references = (None, None) if objective.needs.reference == "none" else values[2:]
    sides = (Responses(own, ref_logps=ref) for own, ref in zip(values[:2], references, strict=True))
    return objective(Pairs(*sides, q))


def sigmoid_loss(h: Tensor, q: Tensor, beta: float) -> Tensor:
    return MMPO(beta).losses(h, torch.zeros_like(h), q)


@given(h=numbers, q=probabilities, beta=betas)
def test_sigmoid_loss_is_the_cross_entropy_of_two_bernoullis(h, q, beta):
    """R3, in closed form."""
    # -log σ(x) = log(1 + e^-x), and |βh| <= 60 does not overflow.
    expected = q * math.log1p(math.exp(-beta * h)) + (1 - q) * math.log1p(math.exp(beta * h))
    assert sigmoid_loss(tensor(h), tensor(q), beta).item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(h=numbers, q=probabilities, beta=betas)
def test_gradient_is_beta_times_the_error_of_the_probability(h, q, beta):
    point = tensor(h).requires_grad_()
    (gradient,) = torch.autograd.grad(sigmoid_loss(point, tensor(q), beta).sum(), point)
    assert gradient.item() == pytest.approx(beta * (torch.sigmoid(tensor(beta * h)).item() - q), rel=1e-9, abs=1e-9)


@given(margin=st.floats(-5, 5), gamma=st.floats(0.1, 3), beta=st.floats(0.05, 2), step=st.floats(0.01, 5))
def test_minimum_is_where_the_implicit_margin_matches_the_scaled_one(margin, gamma, beta, step):
    """R3: least at βh = γ (s_w - s_l)."""
    q = torch.sigmoid(tensor(gamma * margin))
    best = tensor(gamma * margin / beta)
    at_best = sigmoid_loss(best, q, beta)
    for other in (best - step, best + step):
        assert sigmoid_loss(other, q, beta) >= at_best


@pytest.mark.parametrize("kind", OBJECTIVES)
@pytest.mark.parametrize("soft", [True, False])
def test_gradients_by_finite_differences(kind, soft):
    objective = OBJECTIVES[kind](beta=0.3, **({} if kind == "sigmoid" else {"soft": soft}))
    q = tensor(0.1, 0.5, 0.9, 1.0, 0.7)
    inputs = [value.requires_grad_() for value in logps()]

    def function(*values: Tensor) -> Tensor:
        return scores(objective, [*values], q).losses.mean()

    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("kind", SOFT)
def test_soft_losses_at_one_are_the_hard_ones(kind):
    hard, soft = (scores(OBJECTIVES[kind](beta=0.2, soft=soft), logps(), torch.ones(5)) for soft in (False, True))
    torch.testing.assert_close(hard.losses, soft.losses)


@pytest.mark.parametrize("kind", SOFT)
def test_soft_losses_at_zero_swap_chosen_and_rejected(kind):
    objective = OBJECTIVES[kind](beta=0.2, soft=True)
    values = logps()
    swapped = [values[1], values[0], values[3], values[2]]
    at_zero = scores(objective, values, torch.zeros(5)).losses
    at_one = scores(objective, swapped, torch.ones(5)).losses
    torch.testing.assert_close(at_zero.mean(), at_one.mean())


@given(q=probabilities, epsilon=st.floats(0, 0.49), h=numbers)
def test_label_smoothing_mixes_the_targets_in_the_paper_variant_alone(q, epsilon, h):
    values = [tensor(h), tensor(0.0), tensor(0.0), tensor(0.0)]
    objective = MMPO(beta=0.5, label_smoothing=epsilon)
    paper = scores(objective, values, tensor(q)).losses
    released = scores(objective.without_smoothing(), values, tensor(q)).losses
    mixed = (1 - epsilon) * q + epsilon * (1 - q)
    torch.testing.assert_close(paper, sigmoid_loss(tensor(h), tensor(mixed), 0.5))
    torch.testing.assert_close(released, sigmoid_loss(tensor(h), tensor(q), 0.5))
    without = scores(objective, values, None).losses
    torch.testing.assert_close(without, sigmoid_loss(tensor(h), tensor(1 - epsilon), 0.5))


def test_reference_free_takes_the_reference_as_zero():
    values = logps()
    free = scores(MMPO(reference_free=True), values, torch.ones(5))
    zero = torch.zeros(5, dtype=torch.float64)
    plain = scores(MMPO(), [*values[:2], zero, zero], torch.ones(5))
    torch.testing.assert_close(free.losses, plain.losses)
    torch.testing.assert_close(free.chosen_rewards, plain.chosen_rewards)


@given(order=st.permutations(range(5)))
@settings(max_examples=20)
def test_the_order_of_pairs_does_not_matter(order):
    index = torch.tensor(order)
    q = tensor(0.1, 0.5, 0.9, 1.0, 0.7)
    for objective in (MMPO(0.2), *(OBJECTIVES[kind](0.2, soft=True) for kind in SOFT)):
        straight = scores(objective, logps(), q).losses
        shuffled = scores(objective, [value[index] for value in logps()], q[index]).losses
        if len(straight) == len(q):
            torch.testing.assert_close(shuffled, straight[index])
        torch.testing.assert_close(shuffled.mean(), straight.mean())


def test_large_margins_neither_overflow_nor_vanish():
    extreme = tensor(-1e4, 1e4).requires_grad_()
    losses = sigmoid_loss(extreme, tensor(1.0, 0.0), 1.0)
    assert losses.tolist() == [1e4, 1e4]
    (gradient,) = torch.autograd.grad(losses.sum(), extreme)
    assert gradient.tolist() == [-1.0, 1.0]


def test_reward_loss_per_pair_and_as_released():
    """R4, for each pair; released, against the targets of the whole batch."""
    chosen, rejected, q = tensor(1.0, -2.0, 0.5), tensor(0.0, 1.0, 0.5), tensor(0.9, 0.2, 0.6)
    d = chosen - rejected
    per_pair = -q * torch.log(torch.sigmoid(d)) - (1 - q) * torch.log(torch.sigmoid(-d))
    torch.testing.assert_close(MMPOReward()(RewardPairs(chosen, rejected, q)), per_pair)
    # The release: (B, 1) rewards against (B,) targets.
    column = d[:, None]
    square = -q * torch.log(torch.sigmoid(column)) - (1 - q) * torch.log(torch.sigmoid(-column))
    released = MMPOReward(batch_targets=True)(RewardPairs(chosen, rejected, q))
    torch.testing.assert_close(released.mean(), square.mean())
    margin = tensor(0.1, 0.2, 0.3)
    torch.testing.assert_close(
        MMPOReward(batch_targets=True)(RewardPairs(chosen, rejected, q, margin)).mean(),
        -torch.log(torch.sigmoid(column - margin)).mean(),
    )


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match=r"MMPO: beta=0\.0 must be above 0"):
        MMPO(beta=0.0)
    with pytest.raises(ValueError, match=r"label_smoothing=0\.5 must be at least 0 and below 0\.5"):
        Hinge(label_smoothing=0.5)
