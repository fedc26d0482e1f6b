"""Fronts of two measures that are both to be high: non-dominated points, hypervolume, margins, bootstrap intervals.

A point is a pair (x, y); in a reward-tax front x is the reward (or a win rate) and y a task's score. A line is a
sequence of points in the order in which they are joined, such as a sweep of a ratio from 0 to 1. It need not
be monotone in x.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

_CHUNK = 64  # resamples drawn at once: their weights are a matrix of so many rows


def non_dominated(points: Float[np.ndarray, "points 2"]) -> Bool[np.ndarray, " points"]:
    """Tell which points no other point beats: none is at least as high in both measures and higher in one.

    Equal points do not beat each other. Sorted by x and compared with a running maximum of y: O(n log n).

    Args:
        points: (x, y), both the higher the better, finite.

    Returns:
        A mask in the order of ``points``.

    Raises:
        ValueError: for coordinates that are not finite.
    """
    _check_finite(points)
    mask = np.zeros(len(points), dtype=bool)
    best, x_of_best = -np.inf, np.inf
    for index in np.lexsort((points[:, 1], points[:, 0]))[::-1]:  # x falling; y falling where x is equal
        x, y = points[index]
        if y > best:
            best, x_of_best = y, x
            mask[index] = True
        elif y == best and x == x_of_best:
            mask[index] = True
    return mask


def hypervolume(points: Float[np.ndarray, "points 2"], reference: tuple[float, float]) -> float:
    """Return the area that the points dominate above a reference point (the S-metric of Zitzler and Thiele, 1999).

    That is the area of ∪ᵢ [r_x, xᵢ] × [r_y, yᵢ]; points that are not above the reference in both measures add nothing.

    Args:
        points: (x, y), both the higher the better, finite.
        reference: r, the worst values that count.

    Returns:
        In units of x times units of y, at least 0.

    Raises:
        ValueError: for coordinates that are not finite.
    """
    _check_finite(points)
    above = points[(points[:, 0] > reference[0]) & (points[:, 1] > reference[1])]
    area, floor = 0.0, reference[1]
    for x, y in above[np.argsort(-above[:, 0], kind="stable")]:
        if y > floor:
            area += float((x - reference[0]) * (y - floor))
            floor = y
    return area


def line_value(line: Float[np.ndarray, "points 2"], x: float) -> float | None:
    """Return the highest y that a line reaches at x or beyond: max {y : (x', y) on the line, x' ≥ x}.

    The line joins its points by straight segments in their order. Its highest place beyond x is a vertex or where a
    segment crosses x, so the maximum over those is exact.

    Args:
        line: (x, y) of its vertices, in order, finite; a single point is a line of its own.
        x: where.

    Returns:
        In units of y; None if no part of the line is at x or beyond it.

    Raises:
        ValueError: for an empty line or coordinates that are not finite.
    """
    _check_finite(line)
    if len(line) == 0:
        raise ValueError("a line needs at least one point")
    candidates = [float(y) for vertex, y in line if vertex >= x]
    for (left, low), (right, high) in pairwise(line):
        if min(left, right) < x < max(left, right):
            candidates.append(float(low + (x - left) / (right - left) * (high - low)))
    return max(candidates, default=None)


def margin(point: tuple[float, float], line: Float[np.ndarray, "points 2"]) -> float | None:
    """Return by how much a point lies above a line at equal or higher x: y - :func:`line_value` at the point's x.

    Returns:
        In units of y; None if the point is beyond the line, that is has a higher x than any place of it.

    Raises:
        ValueError: as :func:`line_value`.
    """
    value = line_value(line, point[0])
    return None if value is None else point[1] - value


def resampled_means(
    values: Float[np.ndarray, "items columns"], resamples: int, seed: int
) -> Float[np.ndarray, "resamples columns"]:
    """Draw means of items with replacement, all columns by the same draw: the paired bootstrap (Efron, 1979).

    Columns that were measured on the same items keep their covariance, so differences between them have the interval
    of a paired comparison.

    Args:
        values: of the same items under each of several models, finite.
        resamples: number of draws, at least 1.
        seed: of the draws.

    Raises:
        ValueError: for no items or values that are not finite.
    """
    _check_finite(values)
    items = len(values)
    if items == 0:
        raise ValueError("there are no items to draw from")
    draws = [counts @ values / items for counts in _counts(items, resamples, seed)]
    return np.concatenate(draws)


def normal_means(
    means: Float[np.ndarray, " columns"], errors: Float[np.ndarray, " columns"], resamples: int, seed: int
) -> Float[np.ndarray, "resamples columns"]:
    """Draw means from independent normal distributions: the parametric bootstrap where items are not at hand.

    Of columns that were measured on the same items it overstates the error of a difference.

    Args:
        means: measured.
        errors: their standard errors, at least 0.
        resamples: number of draws, at least 1.
        seed: of the draws.
    """
    return means + errors * np.random.default_rng(seed).standard_normal((resamples, len(means)))


@dataclass(frozen=True)
class Interval:
    """A statistic of the data, and its percentile bootstrap interval.

    Attributes:
        value: of the data themselves.
        low: lower end.
        high: upper end.
        above_zero: share of the draws in which the statistic is above 0.
    """

    value: float
    low: float
    high: float
    above_zero: float


def bootstrap_interval(value: float, draws: Float[np.ndarray, " resamples"], confidence: float) -> Interval:
    """Return the percentile interval of a statistic's draws.

    Draws may be infinite, as where a front is beyond another: they count at their end.

    Args:
        value: of the data themselves.
        draws: the statistic of each resample, none of them NaN.
        confidence: in (0, 1).
    """
    tail = (1 - confidence) / 2
    ends = np.quantile(draws, [tail, 1 - tail], method="nearest")
    return Interval(value, float(ends[0]), float(ends[1]), float((draws > 0).mean()))


def statistic_draws(
    statistic: Callable[[Float[np.ndarray, "points measures"]], float],
    draws: Float[np.ndarray, "resamples points measures"],
) -> Float[np.ndarray, " resamples"]:
    """Return a statistic of the points, such as a hypervolume, in every resample."""
    return np.asarray([statistic(points) for points in draws])


def _counts(items: int, resamples: int, seed: int) -> Iterator[Int[np.ndarray, "chunk items"]]:
    """Yield how often each item is drawn, for a chunk of resamples at a time."""
    generator = np.random.default_rng(seed)
    shares: NDArray[np.float64] = np.full(items, 1 / items)
    for start in range(0, resamples, _CHUNK):
        yield generator.multinomial(items, shares, size=min(_CHUNK, resamples - start))


def _check_finite(values: Float[np.ndarray, "rows columns"]) -> None:
    if not np.isfinite(values).all():
        raise ValueError("coordinates must be finite")
