"""Fronts of reward and tasks: hypervolumes, non-dominated points, margins against MA; with bootstrap intervals.

Rewards are resampled by prompt and perplexities by text, with one draw for all models, since all models answered the
same prompts: differences between models have the interval of a paired comparison. Scores of benchmarks are drawn from
normal distributions with their standard errors, independently for every model, which makes intervals of differences too
wide rather than too narrow. Perplexities count negatively.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from reproalign.ama.frontier.collected import MeasuredModel, lower_is_better
from reproalign.ama.frontier.sweeps import MA
from reproalign.common.evaluation.pareto import (
    bootstrap_interval,
    hypervolume,
    line_value,
    non_dominated,
    normal_means,
    resampled_means,
    statistic_draws,
)

Draws = Float[np.ndarray, "resamples models 2"]
FROM_ENDS = ("ma", "part", "pattern", "hma", "adamerging")  # methods whose line runs between θ and θ_0


@dataclass(frozen=True)
class Resampled:
    """Models of an algorithm as points, and their draws.

    Attributes:
        names: of the models.
        points: (models, 2): x and the task, higher being better.
        draws: (resamples, models, 2).
        paired: whether both measures were drawn item by item, with one draw for all models.
    """

    names: list[str]
    points: Float[np.ndarray, "models 2"]
    draws: Draws
    paired: bool

    def of(self, names: Sequence[str]) -> tuple[Float[np.ndarray, "chosen 2"], Draws]:
        """Return the points and draws of some models, in their order."""
        places = [self.names.index(name) for name in names]
        return self.points[places], self.draws[:, places]


def all_fronts(found: Sequence[MeasuredModel], *, confidence: float, resamples: int, seed: int) -> dict[str, Any]:
    """Return for each algorithm and task what ``frontier.json`` holds of them.

    Args:
        found: all rows.
        confidence: of intervals.
        resamples: of the bootstrap.
        seed: of its draws.
    """
    algorithms = list(dict.fromkeys(row.entry.algorithm for row in found if row.entry.algorithm))
    made: dict[str, Any] = {}
    for algorithm in algorithms:
        rows = [row for row in found if row.entry.algorithm in ("", algorithm)]
        shared = set.intersection(*(set(row.measured.tasks) for row in rows))
        tasks = [name for name in rows[0].measured.tasks if name in shared]
        made[algorithm] = {
            task: _Front(rows, task, confidence, resample(rows, task, resamples, seed)).result() for task in tasks
        }
    return made


def resample(found: Sequence[MeasuredModel], task: str, resamples: int, seed: int) -> Resampled:
    """Return the models of rows as points of x and a task, with their draws."""
    models = {row.entry.model: row.measured for row in found}
    names, measured = list(models), list(models.values())
    sign = -1.0 if lower_is_better(task) else 1.0
    x = np.asarray([own.x.value for own in measured])
    y = np.asarray([own.tasks[task].value for own in measured])
    by_prompt = all(len(own.rewards) for own in measured)
    if by_prompt:
        x_draws = resampled_means(np.stack([own.rewards for own in measured], axis=1), resamples, seed)
    else:
        x_draws = normal_means(x, np.asarray([own.x.stderr or 0.0 for own in measured]), resamples, seed)
    by_text = all(task in own.losses for own in measured)
    if by_text:
        sums = np.stack([own.losses[task][:, 0] for own in measured], axis=1)
        tokens = measured[0].losses[task][:, 1:]
        drawn = resampled_means(np.concatenate([sums, tokens], axis=1), resamples, seed + 1)
        y_draws = np.exp(drawn[:, :-1] / drawn[:, -1:])
    else:
        y_draws = normal_means(y, np.asarray([own.tasks[task].stderr or 0.0 for own in measured]), resamples, seed + 1)
    points = np.stack([x, sign * y], axis=1)
    return Resampled(names, points, np.stack([x_draws, sign * y_draws], axis=2), by_prompt and by_text)


class _Front:
    """The rows of one algorithm against one task."""

    def __init__(self, rows: Sequence[MeasuredModel], task: str, confidence: float, drawn: Resampled) -> None:
        self.rows = rows
        self.task = task
        self.confidence = confidence
        self.drawn = drawn
        self.ends = [row.entry.model for row in rows if row.entry.method in ("pre", "post")]
        ends, _ = drawn.of(self.ends)
        self.reference = (float(ends[:, 0].min()), float(ends[:, 1].min()))

    def result(self) -> dict[str, Any]:
        mask = non_dominated(self.drawn.points)
        best = [name for name, kept in zip(self.drawn.names, mask, strict=True) if kept]
        series = list(dict.fromkeys(row.entry.series for row in self.rows if row.entry.method not in ("pre", "post")))
        sign = -1 if lower_is_better(self.task) else 1
        return {
            "lower_is_better": sign < 0,
            "paired": self.drawn.paired,
            "reference": [self.reference[0], sign * self.reference[1]],
            "non_dominated": [
                {"series": row.entry.series, "label": row.entry.label, "model": row.entry.model}
                for row in self.rows
                if row.entry.model in best
            ],
            "hypervolume": {name: self._hypervolume(name) for name in series},
            "margins": [entry for row in self.rows if (entry := self._margins(row)) is not None],
        }

    def _hypervolume(self, series: str) -> dict[str, Any]:
        """Return the area of a series, with θ and θ_0 where it runs between them, and how it compares with MA's."""
        own = self._area(series)
        ma = self._area(self._ma_series()) if self._ma() else None
        made = self._interval(own)
        if ma is not None and series != self._ma_series():
            made["minus_ma"] = self._interval(lambda draw: own(draw) - ma(draw))
        return made

    def _area(self, series: str) -> Callable[[Float[np.ndarray, "models 2"]], float]:
        rows = [row for row in self.rows if row.entry.series == series]
        names = [row.entry.model for row in rows]
        if rows[0].entry.method in FROM_ENDS:
            names += self.ends
        places = [self.drawn.names.index(name) for name in dict.fromkeys(names)]
        return lambda points: hypervolume(points[places], self.reference)

    def _margins(self, row: MeasuredModel) -> dict[str, Any] | None:
        """Return a point's margin over the line of MA at equal or higher x, and over MA at the same mean ratio."""
        line = self._ma()
        shared = [entry.entry.model for entry in line]
        if not line or row.entry.method in ("ma", "pre", "post") or row.entry.model in shared:
            return None
        places = [self.drawn.names.index(name) for name in shared]
        own = self.drawn.names.index(row.entry.model)

        def at_equal_x(points: Float[np.ndarray, "models 2"]) -> float:
            value = line_value(points[places], float(points[own, 0]))
            return math.inf if value is None else float(points[own, 1] - value)

        made: dict[str, Any] = {"series": row.entry.series, "label": row.entry.label, "model": row.entry.model}
        made["at_equal_x"] = self._interval(at_equal_x)
        alphas = [float(entry.entry.alpha or 0.0) for entry in line]
        alpha = row.entry.alpha
        if alpha is None or row.entry.method == "part" or not alphas[0] <= alpha <= alphas[-1]:
            return made
        for place, name in enumerate(("x", "task")):

            def gained(points: Float[np.ndarray, "models 2"], place: int = place) -> float:
                return float(points[own, place] - np.interp(alpha, alphas, points[places, place]))

            made[f"{name}_at_equal_ratio"] = self._interval(gained)
        return made

    def _ma_series(self) -> str:
        return self._ma()[0].entry.series

    def _ma(self) -> list[MeasuredModel]:
        return [row for row in self.rows if row.entry.method == "ma" and row.entry.series.startswith(MA)]

    def _interval(self, statistic: Callable[[Float[np.ndarray, "models 2"]], float]) -> dict[str, Any]:
        """Return a statistic with its interval; beyond every point of the line it is infinite, written as null."""
        value = statistic(self.drawn.points)
        draws = statistic_draws(statistic, self.drawn.draws)
        made = bootstrap_interval(value, draws, self.confidence)
        ends = {"value": made.value, "low": made.low, "high": made.high}
        finite = {name: number if math.isfinite(number) else None for name, number in ends.items()}
        return {**finite, "above_zero": made.above_zero, "beyond": not math.isfinite(value)}
