"""The equations on ratios: the mean is kept whatever the raw values, what ε reaches, how far the published steps go."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reproalign.ama.adapt.config import SearchConfig
from reproalign.ama.adapt.optimizer import RawOptimizer
from reproalign.ama.adapt.parametrisation import Normalised, Stale
from reproalign.ama.adapt.published import learning_rates
from reproalign.ama.adapt.region import Region, pull_inside
from reproalign.ama.adapt.search import search
from reproalign.ama.adapt.settings import SCHEDULES, SolverSteps
from reproalign.ama.ratios import (
    RatioRegularizer,
    constraint_weights,
    initial_raw,
    normalized,
    reachable,
    regularizer_from_code,
)
from reproalign.common.errors import UserError

RAW = st.lists(st.floats(-30, 30), min_size=2, max_size=9)
SIZES = st.lists(st.integers(1, 12), min_size=2, max_size=6)


@given(raw=RAW, base=st.floats(0.01, 0.99), epsilon=st.floats(0.01, 2))
def test_the_mean_is_the_base_whatever_the_raw_values(raw: list[float], base: float, epsilon: float) -> None:
    """Eq. 11: the ratios' mean is α; as printed, without K, their sum is."""
    ratios = normalized(torch.tensor(raw, dtype=torch.float64), base, epsilon)
    assert abs(float(ratios.mean()) - base) < 1e-12
    printed = normalized(torch.tensor(raw, dtype=torch.float64), base, epsilon, normalisation="sum")
    assert abs(float(printed.sum()) - base) < 1e-12


@given(raw=RAW, base=st.floats(0.01, 0.99), data=st.data())
def test_the_layer_weighted_mean_likewise(raw: list[float], base: float, data: st.DataObject) -> None:
    layers = data.draw(st.lists(st.integers(1, 12), min_size=len(raw), max_size=len(raw)))
    weights = constraint_weights(layers, "layer_mean")
    ratios = normalized(torch.tensor(raw, dtype=torch.float64), base, 0.2, weights=weights)
    assert abs(float((weights * ratios).sum()) - base) < 1e-12


@pytest.mark.parametrize(
    ("epsilon", "low", "high"),
    [
        (0.0, 0, 3),
        (0.1, 0.1304, 2.5385),
        (0.2, 0.2308, 2.25),
        (0.5, 0.4286, 1.8),
        (0.9, 0.5745, 1.5405),
        (1.0, 0.6, 1.5),
    ],
)
def test_reachable_ratios_of_three_groups(epsilon: float, low: float, high: float) -> None:
    """Eq. 11: the interval of ratios that any raw values can reach, by hand."""
    found = reachable(1.0, epsilon, constraint_weights([1, 1, 1]))
    assert found[0] == pytest.approx((low, high), abs=5e-5)
    at_the_ends = normalized(torch.tensor([60.0, -800.0, -800.0], dtype=torch.float64), 1.0, epsilon)
    assert float(at_the_ends[0]) == pytest.approx(found[0][1])
    # The paper's illustration of equation 11 as printed: K = 3, ε = 1 gives [0.2 α, 0.5 α].
    if epsilon == 1:
        assert reachable(1.0, 1.0, constraint_weights([1, 1, 1]), "sum")[0] == pytest.approx((0.2, 0.5))


@pytest.mark.parametrize(
    ("rate", "schedule", "warmup", "steps", "updates", "low", "high"),
    [
        (2e-5, "cosine", 0.03, 780, 1, 0.1994, 0.2006),
        (2e-5, "linear", 0.0, 195, 56, 0.191, 0.209),
        (1e-3, "cosine", 0.03, 780, 1, 0.170, 0.232),
        (1e-2, "cosine", 0.03, 780, 1, 0.071, 0.390),
    ],
)
def test_how_far_the_published_steps_can_move_three_ratios(
    rate: float, schedule: str, warmup: float, steps: int, updates: int, low: float, high: float
) -> None:
    settings = SolverSteps(rate, SCHEDULES[schedule], warmup, 1, 1, 0.0, 1, 20)
    way = updates * sum(learning_rates(settings, steps))
    moved = initial_raw(0.2) + torch.tensor([way, -way, 0.0], dtype=torch.float64)
    up, down, _ = normalized(moved, 0.2, 0.2).tolist()
    digits = 5e-5 if rate == 2e-5 and updates == 1 else 6e-4
    assert (down, up) == pytest.approx((low, high), abs=digits)


def test_the_ends_have_no_raw_value() -> None:
    for base in (0.0, 1.0, -0.1, 1.2):
        with pytest.raises(UserError, match="strictly between 0 and 1"):
            initial_raw(base)


def test_codes_of_the_release() -> None:
    assert regularizer_from_code(0.2) == RatioRegularizer("l1", "mid", 13, 26)
    assert regularizer_from_code("1.0") == RatioRegularizer("l2", "none", 13, 26)
    assert regularizer_from_code(2.2).kind == "affine"
    for code in (0, 3.0, 10.2):
        with pytest.raises(UserError, match="means no regulariser"):
            regularizer_from_code(code)


def test_each_linear_layer_counts_or_each_group() -> None:
    """R5: the coefficients c_k, by hand."""
    layers = [[layer for layer in part for _ in range(7)] for part in (range(8), range(8, 16), range(16, 26))]
    plain, mid = RatioRegularizer("l1"), RatioRegularizer("l1", "mid")
    assert plain.coefficients(layers, 26).tolist() == [56, 56, 70]
    assert plain.coefficients(layers, 26, "group").tolist() == [1, 1, 1]
    assert mid.coefficients([[13], [0], [25], [None]], 26).tolist() == pytest.approx([25, 25 / 14, 25 / 13, 25 / 14])


def test_the_gradient_in_raw_values_is_that_of_finite_differences() -> None:
    parametrisation = Normalised(0.3, 0.2, constraint_weights([3, 1, 2], "layer_mean"), "mean", None)
    raw = torch.tensor([0.3, -1.0, 0.7], dtype=torch.float64)
    gradient = torch.tensor([0.5, -0.2, 1.0], dtype=torch.float64)
    found = parametrisation.pull_back(raw, gradient)
    for index in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[index] = 1e-6
        ends = [float((parametrisation.in_force(raw + sign * step) * gradient).sum()) for sign in (1, -1)]
        assert float(found[index]) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-6)


def test_the_released_ratios_begin_as_bfloat16_rounds_them_and_drift_together() -> None:
    stale = Stale(0.2, 0.2, 3, None, with_base=True)
    start = stale.in_force(stale.start)
    assert start.tolist() == pytest.approx([0.2001953] * 4, abs=1e-7)
    moved = stale.start + torch.tensor([0.5, 0.1, 0.0])
    assert len(set(stale.in_force(moved).tolist())) == 1
    assert stale.in_force(moved)[0] < start[0]
    assert float(stale.saved(moved).mean()) == pytest.approx(0.2, abs=1e-7)
    gradient = stale.pull_back(moved, torch.tensor([1.0, 0.0, -1.0, 0.0], dtype=torch.float64))
    assert gradient[0] > 0 > gradient[2]


def test_shared_values_are_updated_as_often_as_they_are_listed() -> None:
    raw = torch.tensor([-1.2, -1.5], dtype=torch.float64)
    one = RawOptimizer(raw, multiplicity=[3, 1], clear=False, weight_decay=0.01)
    value = torch.nn.Parameter(raw[:1].clone())
    plain = torch.optim.AdamW([value], lr=0.1, weight_decay=0.01)
    summed = 0.0
    for gradient in (0.3, -0.1):
        one.step(torch.tensor([gradient, gradient], dtype=torch.float64), 0.1)
        summed += gradient
        value.grad = torch.tensor([summed], dtype=torch.float64)
        for _ in range(3):
            plain.step()
    assert float(one.raw[0]) == pytest.approx(value.item(), rel=1e-12)
    other = RawOptimizer(raw, multiplicity=[3, 1], clear=False, weight_decay=0.01)
    other.load(one.state())
    for optimizer in (one, other):
        optimizer.step(torch.tensor([0.2, 0.4], dtype=torch.float64), 0.1)
    assert torch.equal(one.raw, other.raw)


@given(sizes=SIZES, base=st.floats(0.05, 0.95), epsilon=st.floats(0, 1), data=st.data())
def test_the_region_keeps_the_mean_and_the_box(
    sizes: list[int], base: float, epsilon: float, data: st.DataObject
) -> None:
    """R3: what a solver proposes is pulled to ratios of the base's mean, each from 0 to 1."""
    weights = constraint_weights(sizes, "layer_mean").tolist()
    region = Region(base, weights, epsilon, bounded=True)
    rows, constants = region.pairwise()
    start = region.start[:-1]
    assert (rows @ start + constants >= -1e-12).all()
    wild = np.array(data.draw(st.lists(st.floats(-2, 2), min_size=len(sizes) - 1, max_size=len(sizes) - 1)))
    inside = pull_inside(wild, start, rows, constants)
    assert (rows @ inside + constants >= -1e-9).all()
    ratios = region.ratios(inside)
    assert sum(weight * ratio for weight, ratio in zip(weights, ratios, strict=True)) == pytest.approx(base, abs=1e-12)
    assert all(-1e-12 <= ratio <= 1 + 1e-12 for ratio in ratios)
    assert max(ratios) * epsilon <= min(ratios) * (1 + epsilon) + 1e-9


def test_the_region_says_the_same_with_and_without_the_scale() -> None:
    region = Region(0.4, [0.2, 0.3, 0.5], 0.3, bounded=True)
    rows, constants = region.constraints()
    pair_rows, pair_constants = region.pairwise()
    generator = np.random.default_rng(0)
    for point in generator.uniform(0, 1, (200, 2)):
        allowed = (pair_rows @ point + pair_constants >= 0).all()
        scales = np.linspace(0.01, 4, 4000)[:, None]
        with_scale = (np.concatenate([np.tile(point, (4000, 1)), scales], axis=1) @ rows.T + constants >= -1e-3).all(1)
        assert allowed <= with_scale.any()


def test_the_search_finds_the_best_candidate_and_asks_for_none_twice() -> None:
    """Eq. 3, with a reward whose maximum over Ω is known."""
    target = np.array([0.3, 0.2, 0.1])
    asked: list[tuple[float, ...]] = []

    def measure(number: int, ratios: list[float]) -> float:
        asked.append(tuple(ratios))
        assert number == len(asked)
        return -float(((np.array(ratios) - target) ** 2).sum())

    region = Region(0.2, [1 / 3] * 3, 0.2, bounded=True)
    found = search(region, ["0", "1", "2"], SearchConfig(evaluations=30), measure, lambda *_: None)
    assert found.ratios == pytest.approx(target.tolist(), abs=0.01)
    assert asked[0] == pytest.approx((0.2, 0.2, 0.2))
    assert len(set(asked)) == len(asked) <= 30
    assert found.facts["reward"] > found.facts["reward_at_equal_ratios"]
