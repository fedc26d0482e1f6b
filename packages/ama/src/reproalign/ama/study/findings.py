"""What a set of results says of a claim, instance by instance."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from reproalign.ama.study.results import Results, Values
from reproalign.common.evaluation.pareto import Interval, bootstrap_interval, statistic_draws

CONDITIONS: dict[str, Callable[[float, float], bool]] = {
    "above": lambda value, floor: value > 0,
    "below": lambda value, floor: value < 0,
    "not_below": lambda value, floor: value >= -floor,
}


@dataclass(frozen=True)
class Effect:
    """One instance of a claim.

    Attributes:
        label: what it is about: a point, an algorithm, a metric.
        metric: whose unit the value has.
        value: a difference; inf: beyond, that is at a reward which the other sweep does not reach.
        met: whether the numbers bear the instance out.
        interval: of the bootstrap; None: no standard error is known.
        floor: difference that is noise; 0: not known.
        shown: in words, without the interval.
    """

    label: str
    metric: str
    value: float
    met: bool
    interval: Interval | None
    floor: float
    shown: str

    @property
    def clear(self) -> bool:
        """The value is beyond the floor, and the interval, where there is one, on one side of 0."""
        away = abs(self.value) > self.floor
        return away and (self.interval is None or self.interval.low > 0 or self.interval.high < 0)

    @property
    def text(self) -> str:
        """The value in words, with its interval."""
        if self.interval is None:
            return self.shown
        ends = [f"{end:+.3g}" if math.isfinite(end) else "beyond" for end in (self.interval.low, self.interval.high)]
        return f"{self.shown} [{ends[0]}, {ends[1]}]"

    def values(self) -> dict[str, Any]:
        """Return metric, value and whether it is beyond, ends of the interval, whether that is above 0, and floor."""
        interval = self.interval
        return {
            "metric": self.metric,
            "value": self.value,
            "beyond": self.value == math.inf,
            "low": interval.low if interval else None,
            "high": interval.high if interval else None,
            "above_zero": interval.above_zero if interval else None,
            "floor": self.floor,
        }


def measure_effect(
    results: Results,
    label: str,
    metric: str,
    compute: Callable[[Values], float],
    condition: str,
    confidence: float,
    *,
    floor: float | None = None,
    text: Callable[[float], str] | None = None,
) -> Effect:
    """Compute a statistic of the points, its interval, and whether it meets a condition.

    Args:
        results: the points.
        label: of the instance.
        metric: whose unit and floor it has.
        compute: of the matrix of values, measured or drawn.
        condition: of :data:`CONDITIONS`.
        confidence: of the interval.
        floor: in place of the metric's, where the statistic is no difference of its scores.
        text: of the value; None: signed, with three decimals for rewards and two otherwise.
    """
    value = compute(results.values)
    noise = results.floor.get(metric, 0.0) if floor is None else floor
    interval = None
    if results.draws is not None:
        draws = statistic_draws(compute, results.draws)
        interval = bootstrap_interval(value, draws, confidence) if draws.min() < draws.max() else None
    shown = text(value) if text else f"{label} {number(value, metric)}"
    return Effect(label, metric, value, CONDITIONS[condition](value, noise), interval, noise, shown)


def number(value: float, metric: str) -> str:
    """Return a difference in words."""
    if value == np.inf:
        return "beyond"
    if value == -np.inf:
        return "never"
    return f"{value:+.3f}" if metric == "reward" else f"{value:+.2f}"
