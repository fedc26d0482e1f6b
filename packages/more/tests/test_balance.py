"""From the domains' gradients to their weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reproalign.common.errors import UserError
from reproalign.more.balance import NORMALIZATIONS, Balancer, normalize_gradients, settle_weights
from reproalign.more.config import WeightsConfig
from reproalign.more.loss import DomainSums
from reproalign.more.released import PAPER, RELEASED, rules_of

NAMES = ["a", "b", "c"]


def sums(gradients: list[list[float]], pairs: list[float] | None = None, losses: list[float] | None = None):
    """Sums of a batch whose mean gradients and losses are given."""
    counts = torch.tensor(pairs or [2.0] * len(gradients), dtype=torch.float64)
    mean = torch.tensor(losses or [0.5] * len(gradients), dtype=torch.float64)
    matrix = torch.tensor(gradients, dtype=torch.float64)
    return DomainSums(mean * counts, counts, counts / 2, (counts > 0).double(), matrix * counts[:, None])


def balancer(variant: str = "paper", names: list[str] = NAMES, hidden: int = 2, **options) -> Balancer:
    return Balancer(
        WeightsConfig(**options), names, torch.zeros(len(names), hidden, dtype=torch.float64), rules_of(variant)
    )


def test_l2_makes_the_weights_independent_of_the_lengths() -> None:
    """R3: gradients of other lengths in the same directions get the same weights."""
    short = balancer(normalize="l2").step(sums([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), grouped=True)
    long = balancer(normalize="l2").step(sums([[9.0, 0.0], [0.0, 0.1], [3.0, 3.0]]), grouped=True)
    torch.testing.assert_close(short.weights, long.weights)
    assert long.gradient_norms.tolist() == pytest.approx([9.0, 0.1, 3 * 2**0.5])


def directions(gradients: Tensor, weights: Tensor) -> Tensor:
    """By how much each domain's loss changes along the step, to first order."""
    return gradients @ -(weights @ gradients)


@given(st.integers(0, 10_000), st.integers(2, 6), st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_no_domain_s_loss_goes_up_along_the_paper_s_step(seed: int, domains: int, hidden: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randn(domains, hidden, dtype=torch.float64, generator=generator)
    found = balancer(names=[str(k) for k in range(domains)], hidden=hidden).step(sums(gradients.tolist()), grouped=True)
    assert (directions(gradients, found.weights) <= 1e-10).all()


def test_the_released_normalisation_can_raise_a_domain_s_loss() -> None:
    """The example of docs/more.md: (1, 0) and (-3, 4)."""
    gradients = torch.tensor([[1.0, 0.0], [-3.0, 4.0]], dtype=torch.float64)
    batch = sums(gradients.tolist())
    paper = balancer(names=["a", "b"]).step(batch, grouped=True).weights
    assert paper.tolist() == pytest.approx([7 / 8, 1 / 8])
    assert directions(gradients, paper).tolist() == pytest.approx([-0.5, -0.5])
    released = balancer("released", names=["a", "b"]).step(batch, grouped=True).weights
    assert released.tolist() == pytest.approx([0.5, 0.5])
    assert directions(gradients, released).tolist() == pytest.approx([1.0, -11.0])


def test_defaults_follow_the_variant_and_each_can_be_set_under_both() -> None:
    found = {
        variant: settle_weights(WeightsConfig(), NAMES, rules_of(variant).weights) for variant in ("paper", "released")
    }
    assert (found["paper"].normalize, found["paper"].alpha, found["paper"].solver) == ("none", 1.0, "exact")
    assert (found["released"].normalize, found["released"].alpha) == ("l2", 0.99)
    assert found["released"].solver == "frank-wolfe"
    for variant in ("paper", "released"):
        mixed = settle_weights(
            WeightsConfig(normalize="loss", alpha=0.5, solver="exact"), NAMES, rules_of(variant).weights
        )
        assert (mixed.normalize, mixed.alpha, mixed.solver) == ("loss", 0.5, "exact")


def test_momentum_is_an_average_that_begins_at_zero() -> None:
    """R3: m ← (1 - α) m + α g, from m = 0."""
    one = balancer(alpha=0.25)
    one.step(sums([[1.0, 0.0]] * 3), grouped=True)
    one.step(sums([[0.0, 1.0]] * 3), grouped=True)
    assert one.momentum[0].tolist() == pytest.approx([0.1875, 0.25])


def test_an_absent_domain_keeps_its_momentum_and_gets_no_weight() -> None:
    one = balancer(normalize="l2", alpha=0.99)
    one.step(sums([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), grouped=False)
    before = one.momentum.clone()
    found = one.step(sums([[2.0, 0.0], [0.0, 0.0], [0.0, 2.0]], [2.0, 0.0, 2.0]), grouped=False)
    assert found.weights.tolist() == pytest.approx([0.5, 0.0, 0.5])
    assert found.present.tolist() == [True, False, True]
    assert torch.equal(one.momentum[1], before[1])
    assert not torch.equal(one.momentum[0], before[0])


def test_a_batch_of_ties_alone_weights_nothing() -> None:
    found = balancer().step(sums([[0.0, 0.0]] * 3, [0.0] * 3), grouped=True)
    assert found.weights.tolist() == [0.0, 0.0, 0.0]


def test_only_the_release_lets_a_domain_of_ties_take_part() -> None:
    batch = sums([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], [2.0, 2.0, 0.0])
    assert balancer().step(batch, grouped=True).weights.tolist() == pytest.approx([0.5, 0.5, 0.0])
    released = balancer("released", solver="exact", alpha=1.0).step(batch, grouped=True)
    assert released.weights.tolist() == pytest.approx([0.0, 0.0, 1.0])  # its gradient of 0 is the shortest
    # At the published α and l2 what is left of its momentum takes part at full length.
    published = balancer("released", solver="exact")
    published.step(sums([[1.0, 0.2], [0.1, 1.0], [1.0, 1.0]]), grouped=True)
    assert published.step(batch, grouped=True).weights[2] < 0.5
    assert published.momentum[2].norm() < 0.02


def test_one_domain_has_all_the_weight() -> None:
    for variant in ("paper", "released"):
        found = balancer(variant, ["a"]).step(sums([[1.0, 2.0]]), grouped=True)
        assert found.weights.tolist() == [1.0]


def test_fixed_and_uniform_weights() -> None:
    batch = sums([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    fixed = balancer(rule="fixed", fixed={"a": 1.0, "b": 3.0, "c": 0.0}).step(batch, grouped=True)
    assert fixed.weights.tolist() == pytest.approx([0.25, 0.75, 0.0])
    assert balancer(rule="uniform").step(batch, grouped=True).weights.tolist() == pytest.approx([1 / 3] * 3)
    absent = sums([[1.0, 0.0]] * 3, [2.0, 0.0, 2.0])
    assert balancer(rule="uniform").step(absent, grouped=True).weights.tolist() == pytest.approx([0.5, 0.0, 0.5])


@pytest.mark.parametrize("kind", NORMALIZATIONS)
def test_zero_gradients_stay_zero(kind: str) -> None:
    gradients = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
    found = normalize_gradients(gradients, torch.tensor([0.5, 0.25], dtype=torch.float64), kind)
    assert found[0].tolist() == [0.0, 0.0]
    expected: dict[str, Tensor | float] = {"none": 5.0, "l2": 1.0, "loss": 5 * 2.75 / 1.25, "loss+": 4.0}
    assert found[1].norm().item() == pytest.approx(expected[kind])


def test_a_loss_of_zero_is_divided_by_in_the_release_alone() -> None:
    gradients, losses = torch.ones(2, 2, dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert normalize_gradients(gradients, losses, "loss+", PAPER.least_loss).isfinite().all()
    assert normalize_gradients(gradients, losses, "loss+", RELEASED.least_loss)[0].isinf().all()
    with pytest.raises(UserError, match=r"weights\.normalize=l2"):
        balancer("released", normalize="loss+").step(sums([[1.0, 1.0]] * 3, losses=[0.0, 1.0, 1.0]), grouped=True)


def test_gradients_that_are_not_finite_are_named() -> None:
    with pytest.raises(UserError, match="learning_rate"):
        balancer(normalize="none").step(sums([[float("nan"), 0.0]] * 3), grouped=True)


def test_initial_momentum() -> None:
    assert not PAPER.momentum(3, 4, 1).any()
    state = torch.get_rng_state()
    released = RELEASED.momentum(3, 4, 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(released[0], released[2])
    assert released.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "fixed", "fixed": {"a": 1.0}}, "one weight to each of a, b, c"),
        ({"rule": "fixed", "fixed": {"a": 0.0, "b": 0.0, "c": 0.0}}, "one of them must be above 0"),
        ({"fixed": {"a": 1.0}}, "weights.rule=fixed alone"),
    ],
)
def test_options_that_cannot_be_meant(options, message: str) -> None:
    with pytest.raises(UserError, match=message):
        settle_weights(WeightsConfig(**options), NAMES, PAPER.weights)
