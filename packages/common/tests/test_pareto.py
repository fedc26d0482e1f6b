"""Fronts against brute force: who beats whom, areas by counting cells, lines by dense sampling, bootstrap moments."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reproalign.common.evaluation.pareto import (
    bootstrap_interval,
    hypervolume,
    line_value,
    margin,
    non_dominated,
    normal_means,
    resampled_means,
    statistic_draws,
)

GRID = st.lists(st.tuples(st.integers(-3, 6), st.integers(-3, 6)), max_size=12)


def array(points: list[tuple[int, int]]) -> np.ndarray:
    return np.asarray(points, dtype=float).reshape(-1, 2)


@given(GRID)
def test_a_point_is_kept_unless_another_is_as_high_in_both_and_higher_in_one(points: list[tuple[int, int]]) -> None:
    kept = [not any(x >= a and y >= b and (x, y) != (a, b) for x, y in points) for a, b in points]
    assert non_dominated(array(points)).tolist() == kept


@given(GRID, st.tuples(st.integers(-2, 3).map(float), st.integers(-2, 3).map(float)))
def test_the_hypervolume_counts_the_cells_below_some_point(
    points: list[tuple[int, int]], reference: tuple[float, float]
) -> None:
    cells = itertools.product(range(int(reference[0]), 6), range(int(reference[1]), 6))
    covered = sum(any(x >= a + 1 and y >= b + 1 for x, y in points) for a, b in cells)
    assert hypervolume(array(points), reference) == covered


@given(GRID)
def test_dominated_points_add_no_hypervolume(points: list[tuple[int, int]]) -> None:
    whole = array(points)
    assert hypervolume(whole, (-3.0, -3.0)) == hypervolume(whole[non_dominated(whole)], (-3.0, -3.0))


@given(GRID.filter(bool), st.floats(-4, 7))
def test_the_value_of_a_line_is_the_highest_place_at_equal_or_higher_x(points: list[tuple[int, int]], x: float) -> None:
    line = array(points)
    shares = np.linspace(0, 1, 401)[:, None]
    dense = [line, *(start + shares * (end - start) for start, end in itertools.pairwise(line))]
    places = np.concatenate(dense)
    beyond = places[places[:, 0] >= x]
    value = line_value(line, x)
    assert (value is None) == (x > line[:, 0].max())
    if value is not None:
        sampled = beyond[:, 1].max()
        steepest = max((abs(b - a) for (_, a), (_, b) in itertools.pairwise(points)), default=0) / 400
        assert sampled - 1e-9 <= value <= sampled + steepest + 1e-9


def test_the_margin_is_measured_at_equal_or_higher_x_and_none_beyond_the_line() -> None:
    line = np.asarray([[4.0, 0.0], [5.0, 2.0], [3.0, 6.0]])  # first forward, then back
    assert margin((4.0, 5.0), line) == pytest.approx(5.0 - 4.0)  # the way back crosses 4 at 4, the way out at 0
    assert margin((3.0, 5.0), line) == pytest.approx(-1.0)
    assert margin((5.0, 3.0), line) == pytest.approx(1.0)
    assert margin((5.1, 0.0), line) is None


def test_numbers_that_are_not_finite_and_empty_lines_are_refused() -> None:
    with pytest.raises(ValueError, match="finite"):
        hypervolume(np.asarray([[np.nan, 1.0]]), (0.0, 0.0))
    with pytest.raises(ValueError, match="at least one point"):
        line_value(np.empty((0, 2)), 0.0)
    with pytest.raises(ValueError, match="no items"):
        resampled_means(np.empty((0, 2)), 10, 0)


def test_paired_resamples_keep_the_covariance_of_columns() -> None:
    generator = np.random.default_rng(0)
    shared = generator.standard_normal(400)
    values = np.stack([shared, shared + 0.1 * generator.standard_normal(400)], axis=1)
    draws = resampled_means(values, 4000, seed=1)
    assert draws.shape == (4000, 2)
    expected = np.cov(values.T, ddof=0) / 400
    assert np.cov(draws.T) == pytest.approx(expected, rel=0.1)
    alone = np.std(draws[:, 0])
    assert np.std(draws[:, 1] - draws[:, 0]) < 0.2 * alone
    assert (resampled_means(values, 100, seed=1) == draws[:100]).all()


def test_normal_draws_have_the_given_errors() -> None:
    draws = normal_means(np.asarray([1.0, 2.0]), np.asarray([0.0, 0.5]), 20_000, seed=0)
    assert (draws[:, 0] == 1).all()
    assert draws[:, 1].std() == pytest.approx(0.5, rel=0.02)


def test_an_interval_holds_the_middle_of_the_draws_and_counts_infinite_ones() -> None:
    draws = np.concatenate([np.arange(98.0), [np.inf, -np.inf]])
    interval = bootstrap_interval(50.0, draws, 0.9)
    assert (interval.value, interval.low, interval.high) == (50.0, 4.0, 93.0)
    assert interval.above_zero == 0.98
    assert bootstrap_interval(0.0, np.full(50, np.inf), 0.9).low == np.inf


def test_a_statistic_is_taken_of_every_resample() -> None:
    draws = np.random.default_rng(0).random((7, 3, 2))
    found = statistic_draws(lambda points: hypervolume(points, (0.0, 0.0)), draws)
    assert found.tolist() == [hypervolume(points, (0.0, 0.0)) for points in draws]
