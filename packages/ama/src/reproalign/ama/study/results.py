"""A set of points as claims need it: the sweeps that it holds, and draws of all its numbers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from reproalign.ama.points import Point
from reproalign.common.errors import UserError
from reproalign.common.evaluation.pareto import normal_means, resampled_means
from reproalign.common.records.handed_on import intact

REWARD = "reward"
WIN_RATES_OF_TABLE = "alpacaeval"
_SAME_ALPHA = 1e-6

Values = Float[np.ndarray, "points metrics"]


@dataclass(frozen=True)
class Results:
    """Points with their numbers as a matrix, and draws of it.

    Attributes:
        points: evaluated models.
        metrics: names of the columns: the reward first, then the tasks.
        values: NaN where a point lacks a metric.
        draws: of the bootstrap; None if no standard error is known.
        floor: metric -> difference that is noise: what the same model differs by when it is scored twice.
        notes: how the draws were made.
    """

    points: list[Point]
    metrics: list[str]
    values: Values
    draws: Float[np.ndarray, "resamples points metrics"] | None
    floor: Mapping[str, float]
    notes: list[str]

    def column(self, metric: str) -> int:
        """Return the column of a metric."""
        return self.metrics.index(metric)

    def known(self, indices: Iterable[int], metric: str) -> list[int]:
        """Return those of the points that have a metric."""
        if metric not in self.metrics:
            return []
        return [index for index in indices if np.isfinite(self.values[index, self.column(metric)])]

    def find(self, *, measure: str | None = None, **wanted: object) -> list[int]:
        """Return the indices of points whose attributes are those wanted.

        Args:
            measure: what the reward is; None: all but the win rates of Table 1, which no sweep has.
            wanted: attributes of :class:`Point`; a tuple or list holds those that will do.
        """
        return [
            index
            for index, point in enumerate(self.points)
            if (point.notes.get("measure", "") == measure if measure else not _of_table(point))
            and all(_fits(getattr(point, name), value) for name, value in wanted.items())
        ]

    def post(self, algorithm: str) -> int | None:
        """Return the aligned model θ of an algorithm: a point of its own, or the end α = 0 of a sweep."""
        found = self.find(method="post", algorithm=algorithm)
        for method in ("ma", "hma", "part"):
            found += [index for index in self.find(method=method, algorithm=algorithm) if self._at(index, 0.0)]
        return found[0] if found else None

    def pre(self, algorithm: str) -> int | None:
        """Return θ_0: a point of its own, of this algorithm if there is one, or the end α = 1 of a sweep."""
        found = self.find(method="pre", algorithm=algorithm) + self.find(method="pre", algorithm="")
        sweeps = self.find(method=("ma", "hma"), algorithm=algorithm)
        found += [index for index in sweeps if self._at(index, 1.0)]
        return found[0] if found else None

    def sweep(self, algorithm: str, method: str, *, groups: str = "", part: str = "") -> list[int]:
        """Return the points of a sweep over α in rising order, with θ and θ_0 at its ends where those are known.

        Args:
            algorithm: of the alignment.
            method: ma, hma or part.
            groups: K of learned ratios; empty: 3, which is the paper's, and those that state none.
            part: input, middle or output, of method part; its end α = 1 is not θ_0.

        Raises:
            UserError: for two points at one ratio whose numbers differ.
        """
        found = [
            index
            for index in self.find(method=method, algorithm=algorithm, part=part)
            if self.points[index].alpha is not None and (method != "hma" or self._groups(index) == (groups or "3"))
        ]
        if not found:
            return []
        ends = ((self.post(algorithm), 0.0), (None if method == "part" else self.pre(algorithm), 1.0))
        placed = [(self.points[index].alpha or 0.0, index) for index in found]
        for end, alpha in ends:
            if end is not None and not any(self._at(index, alpha) for index in found):
                placed.append((alpha, end))
        kept: list[tuple[float, int]] = []
        for alpha, index in sorted(placed):
            if kept and alpha - kept[-1][0] < _SAME_ALPHA:
                self._check_same(kept[-1][1], index)
            else:
                kept.append((alpha, index))
        return [index for _, index in kept]

    def at(self, indices: Iterable[int], alpha: float) -> int | None:
        """Return the point at a ratio."""
        return next((index for index in indices if self._at(index, alpha)), None)

    def label(self, index: int) -> str:
        """Return a point in a few words."""
        point = self.points[index]
        name = point.part or point.method
        if point.value and point.parameter != "K":
            return f"{name} {point.value}"
        return name if point.alpha is None else f"{name} {point.alpha:g}"

    def _at(self, index: int, alpha: float) -> bool:
        own = self.points[index].alpha
        return own is not None and abs(own - alpha) < _SAME_ALPHA

    def _groups(self, index: int) -> str:
        point = self.points[index]
        return point.value if point.parameter in ("K", "level") and point.value else "3"

    def _check_same(self, one: int, other: int) -> None:
        if not np.array_equal(self.values[one], self.values[other], equal_nan=True):
            point = self.points[one]
            raise UserError(
                f"results: {point.method} of {point.algorithm or 'no algorithm'} has two points at alpha="
                f"{self.points[other].alpha:g} that differ; leave one out, or choose one tensor rule by rule=…"
            )


def make_results(points: Sequence[Point], floor: Mapping[str, float], *, resamples: int = 0, seed: int = 0) -> Results:
    """Put points into a matrix, and draw it.

    Rewards by prompt (``rewards`` of :data:`reproalign.ama.points.NOTES`) that are of the same prompts for all points
    that have them are resampled together, centred at the reward that the table states; everything else is drawn from
    normal distributions with its standard error, or stays as it is where none is known.

    Args:
        points: evaluated models.
        floor: metric -> noise.
        resamples: number of draws; 0: none.
        seed: of the draws.

    Raises:
        UserError: for a file of rewards that cannot be read.
    """
    metrics = [REWARD, *dict.fromkeys(name for point in points for name in point.metrics)]
    measures = [[point.reward, *(point.metrics.get(name) for name in metrics[1:])] for point in points]
    values = np.asarray([[found.value if found else np.nan for found in row] for row in measures])
    errors = np.asarray([[(found.stderr or 0.0) if found else 0.0 for found in row] for row in measures])
    rows = _rewards(points) if resamples else None
    notes: list[str] = []
    draws = None
    if resamples and (errors.any() or rows):
        flat = normal_means(values.ravel(), errors.ravel(), resamples, seed)
        draws = flat.reshape(resamples, *values.shape)
        if rows:
            chosen, table = rows
            means = resampled_means(table, resamples, seed)
            draws[:, chosen, 0] = means - table.mean(axis=0) + values[chosen, 0]
            notes.append(f"rewards of {len(chosen)} points resampled together over {len(table)} prompts")
        unknown = sum(found is not None and found.stderr is None for row in measures for found in row)
        if unknown:
            notes.append(f"{unknown} numbers have no standard error and are taken as exact")
    return Results(list(points), metrics, values, draws, floor, notes)


def _rewards(points: Sequence[Point]) -> tuple[list[int], Float[np.ndarray, "prompts points"]] | None:
    """Return which points have rewards by prompt, and those; None if there are none, or they are of other prompts."""
    chosen = [index for index, point in enumerate(points) if "rewards" in point.notes]
    if not chosen:
        return None
    read = [_read_rewards(points[index].notes["rewards"]) for index in chosen]
    ids = list(read[0])
    if any(set(rows) != set(ids) for rows in read):
        return None
    return chosen, np.asarray([[rows[name] for rows in read] for name in ids])


def _read_rewards(path: str) -> dict[str, float]:
    try:
        lines = intact(Path(path)).read_text(encoding="utf-8").splitlines()
        return {str(row["id"]): float(row["reward"]) for row in map(json.loads, lines)}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"rewards={path}: JSON lines of id and reward are needed there") from error


def _of_table(point: Point) -> bool:
    return point.notes.get("measure") == WIN_RATES_OF_TABLE


def _fits(found: object, wanted: object) -> bool:
    return found in wanted if isinstance(wanted, tuple | list) else found == wanted
