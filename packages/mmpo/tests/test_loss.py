"""The losses against their defining properties, brute force, and TRL's DPO."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reproalign.common.errors import UserError
from reproalign.mmpo.config import LossConfig
from reproalign.mmpo.loss import check_loss, kto_pair_loss, pair_loss, reward_loss, sigmoid_loss

numbers = st.floats(-30, 30)
probabilities = st.floats(0, 1)
betas = st.floats(0.001, 2)


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def logps(count: int = 5, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [-50 + 10 * torch.randn(count, generator=generator, dtype=torch.float64) for _ in range(4)]


def quantity_h(values: list[Tensor]) -> Tensor:
    return (values[0] - values[1]) - (values[2] - values[3])


@given(h=numbers, q=probabilities, beta=betas)
def test_sigmoid_loss_is_the_cross_entropy_of_two_bernoullis(h, q, beta):
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
    q = torch.sigmoid(tensor(gamma * margin))
    best = tensor(gamma * margin / beta)
    at_best = sigmoid_loss(best, q, beta)
    for other in (best - step, best + step):
        assert sigmoid_loss(other, q, beta) >= at_best


@pytest.mark.parametrize("kind", ["sigmoid", "hinge", "ipo", "kto_pair"])
@pytest.mark.parametrize("soft", [True, False])
def test_gradients_by_finite_differences(kind, soft):
    config = LossConfig(type=kind, beta=0.3, soft=soft)
    q = tensor(0.1, 0.5, 0.9, 1.0, 0.7)
    inputs = [value.requires_grad_() for value in logps()]

    def function(*values: Tensor) -> Tensor:
        return pair_loss(config, "paper", *values, q).losses.mean()

    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("kind", ["sigmoid", "hinge", "ipo", "kto_pair"])
def test_soft_losses_at_one_are_the_hard_ones(kind):
    hard = pair_loss(LossConfig(type=kind, beta=0.2), "paper", *logps(), torch.ones(5))
    soft = pair_loss(LossConfig(type=kind, beta=0.2, soft=True), "paper", *logps(), torch.ones(5))
    torch.testing.assert_close(hard.losses, soft.losses)


@pytest.mark.parametrize("kind", ["sigmoid", "hinge", "ipo", "kto_pair"])
def test_soft_losses_at_zero_swap_chosen_and_rejected(kind):
    config = LossConfig(type=kind, beta=0.2, soft=True)
    values = logps()
    swapped = [values[1], values[0], values[3], values[2]]
    at_zero = pair_loss(config, "paper", *values, torch.zeros(5)).losses
    at_one = pair_loss(config, "paper", *swapped, torch.ones(5)).losses
    torch.testing.assert_close(at_zero.mean(), at_one.mean())


@given(q=probabilities, epsilon=st.floats(0, 0.49), h=numbers)
def test_label_smoothing_mixes_the_targets_in_the_paper_variant_alone(q, epsilon, h):
    values = [tensor(h), tensor(0.0), tensor(0.0), tensor(0.0)]
    config = LossConfig(beta=0.5, label_smoothing=epsilon)
    paper = pair_loss(config, "paper", *values, tensor(q)).losses
    released = pair_loss(config, "released", *values, tensor(q)).losses
    mixed = (1 - epsilon) * q + epsilon * (1 - q)
    torch.testing.assert_close(paper, sigmoid_loss(tensor(h), tensor(mixed), 0.5))
    torch.testing.assert_close(released, sigmoid_loss(tensor(h), tensor(q), 0.5))
    without = pair_loss(config, "released", *values, None).losses
    torch.testing.assert_close(without, sigmoid_loss(tensor(h), tensor(1 - epsilon), 0.5))


def test_reference_free_takes_the_reference_as_zero():
    values = logps()
    free = pair_loss(LossConfig(reference_free=True), "paper", *values, torch.ones(5))
    zero = torch.zeros(5, dtype=torch.float64)
    plain = pair_loss(LossConfig(), "paper", values[0], values[1], zero, zero, torch.ones(5))
    torch.testing.assert_close(free.losses, plain.losses)
    torch.testing.assert_close(free.chosen_rewards, plain.chosen_rewards)


@given(order=st.permutations(range(5)))
@settings(max_examples=20)
def test_the_order_of_pairs_does_not_matter(order):
    index = torch.tensor(order)
    q = tensor(0.1, 0.5, 0.9, 1.0, 0.7)
    for kind in ("sigmoid", "hinge", "ipo"):
        config = LossConfig(type=kind, beta=0.2, soft=True)
        straight = pair_loss(config, "paper", *logps(), q).losses
        shuffled = pair_loss(config, "paper", *(value[index] for value in logps()), q[index]).losses
        torch.testing.assert_close(shuffled, straight[index])
    chosen, rejected = logps()[:2]
    torch.testing.assert_close(
        kto_pair_loss(chosen[index], rejected[index], 0.1).mean(), kto_pair_loss(chosen, rejected, 0.1).mean()
    )


def test_large_margins_neither_overflow_nor_vanish():
    extreme = tensor(-1e4, 1e4).requires_grad_()
    losses = sigmoid_loss(extreme, tensor(1.0, 0.0), 1.0)
    assert losses.tolist() == [1e4, 1e4]
    (gradient,) = torch.autograd.grad(losses.sum(), extreme)
    assert gradient.tolist() == [-1.0, 1.0]


def test_reward_loss_per_pair_and_as_released():
    chosen, rejected, q = tensor(1.0, -2.0, 0.5), tensor(0.0, 1.0, 0.5), tensor(0.9, 0.2, 0.6)
    d = chosen - rejected
    per_pair = -q * torch.log(torch.sigmoid(d)) - (1 - q) * torch.log(torch.sigmoid(-d))
    torch.testing.assert_close(reward_loss(chosen, rejected, q), per_pair)
    # The release: (B, 1) rewards against (B,) targets.
    column = d[:, None]
    square = -q * torch.log(torch.sigmoid(column)) - (1 - q) * torch.log(torch.sigmoid(-column))
    released = reward_loss(chosen, rejected, q, broadcast_compat=True)
    torch.testing.assert_close(released.mean(), square.mean())
    margin = tensor(0.1, 0.2, 0.3)
    torch.testing.assert_close(
        reward_loss(chosen, rejected, q, margin=margin, broadcast_compat=True).mean(),
        -torch.log(torch.sigmoid(column - margin)).mean(),
    )


def test_bad_options_are_refused_and_ignored_margins_announced():
    with pytest.raises(UserError, match=r"loss\.beta=0"):
        check_loss(LossConfig(beta=0.0), "paper")
    with pytest.raises(UserError, match="unknown variant"):
        check_loss(LossConfig(), "original")
    with pytest.warns(UserWarning, match="does not use the margin"):
        check_loss(LossConfig(type="hinge"), "paper")
