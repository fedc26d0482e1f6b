"""Results as the studies read them: points of one tensor rule, their metrics by the paper's names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from reproalign.ama.points import Measure, Point, read_points
from reproalign.ama.study.results import REWARD
from reproalign.common.errors import UserError
from reproalign.common.files import sha256_file
from reproalign.common.records import Run


def read_results(paths: Sequence[str] | None, tasks: Mapping[str, str], rule: str | None) -> list[Point]:
    """Read the points of results under one tensor rule, their metrics by the paper's names; none without paths.

    Raises:
        UserError: for what cannot be read, several tensor rules, or keys without results.
    """
    if not paths:
        if tasks or rule:
            raise UserError(f"{'tasks' if tasks else 'rule'} is about results; give results=[points.csv,…] too")
        return []
    points = [point for path in paths for point in read_points(path)]
    return renamed(under_rule(points, rule), tasks)


def add_fingerprints(run: Run, paths: Sequence[str] | None) -> None:
    """Record the files of results."""
    for path in paths or ():
        file = Path(path).expanduser()
        file = file / "points.csv" if file.is_dir() else file
        run.add_fingerprint("data", path, sha256_file(file), path=path)


def renamed(points: Iterable[Point], tasks: Mapping[str, str]) -> list[Point]:
    """Give columns of results the names of the paper's metrics.

    Args:
        points: of the results.
        tasks: the paper's name -> the column, after a minus sign if lower is better; its sign is turned then.

    Raises:
        UserError: for a column that no point has.
    """
    listed = list(points)
    for name, column in tasks.items():
        if not any(column.removeprefix("-") in point.metrics for point in listed):
            known = ", ".join(sorted({metric for point in listed for metric in point.metrics})) or "none"
            raise UserError(f"tasks.{name}={column}: no point has this metric; the results have {known}")

    def metrics(point: Point) -> dict[str, Measure]:
        found = dict(point.metrics)
        for name, column in tasks.items():
            measure = point.metrics.get(column.removeprefix("-"))
            found.pop(name, None)
            if measure:
                found[name] = Measure(-measure.value, measure.stderr) if column.startswith("-") else measure
        return found

    return [replace(point, metrics=metrics(point)) for point in listed]


def under_rule(points: Iterable[Point], rule: str | None) -> list[Point]:
    """Keep averages under one tensor rule, and whatever is no average.

    Raises:
        UserError: if the points are under several rules and none is chosen, or none is under the chosen one.
    """
    listed = list(points)
    present = sorted({point.notes["rule"] for point in listed if "rule" in point.notes})
    if rule is None:
        if len(present) > 1:
            raise UserError(f"the results are under several tensor rules ({', '.join(present)}); choose one by rule=…")
        return listed
    if rule not in present:
        raise UserError(f"rule={rule}: no point is under it; the results have {', '.join(present) or 'no rules'}")
    return [point for point in listed if point.notes.get("rule", rule) == rule]


def measured_floor(points: Sequence[Point]) -> dict[str, float]:
    """Return by how much θ_0 differs from itself: the largest difference between its scorings, by metric.

    Raises:
        UserError: unless θ_0 was scored at least twice.
    """
    scored = [point for point in points if point.method == "pre"]
    if len(scored) < 2:
        raise UserError(
            "floor=measured needs θ_0 scored twice: two rows with method 'pre'; add one, or floor=published"
        )
    names = set.intersection(*(set(point.metrics) for point in scored))

    def spread(value: Callable[[Point], float]) -> float:
        found = [value(point) for point in scored]
        return max(found) - min(found)

    tasks = {name: spread(lambda point, name=name: point.metrics[name].value) for name in sorted(names)}  # type: ignore[misc]
    return {REWARD: spread(lambda point: point.reward.value), **tasks}
