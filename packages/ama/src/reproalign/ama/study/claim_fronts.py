"""Checks that compare points and sweeps with the MA front: margins, hypervolumes, lines of two algorithms."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from reproalign.ama.study.check import Check
from reproalign.ama.study.findings import Effect, number
from reproalign.ama.study.results import Values
from reproalign.common.evaluation.pareto import hypervolume, line_value, margin, non_dominated
from reproalign.common.study.findings import Finding


def margins(check: Check) -> Finding[Effect]:
    """Measure how far points lie above the MA line of their algorithm."""
    effects: list[Effect] = []
    missing: list[str] = []
    notes: list[str] = []
    entry = check.entry
    for algorithm in entry["algorithms"]:
        line = check.results.sweep(algorithm, "ma")
        points, absent = check.chosen(algorithm)
        missing += absent + ([] if line else [f"no MA sweep of {algorithm}"])
        if not line or not points:
            continue
        for metric, condition in entry["conditions"].items():
            base = check.results.known(line, metric)
            known = check.results.known(points, metric) if len(base) > 1 else []
            if not known:
                missing.append(f"no {metric} of {', '.join(entry['methods'])} and MA ({algorithm})")
                continue
            front = _front(check, known, metric) if entry.get("front") else known
            found = [_margin(check, algorithm, index, metric, base, condition) for index in front]
            effects += found
            notes += _grid_note(check, front, base, metric) if condition == "below" else []
            rest = [_margin(check, algorithm, index, metric, base, condition) for index in known if index not in front]
            notes += [f"not on the front: {', '.join(effect.text for effect in rest)}"] if rest else []
        for metric in entry.get("beside", ()):
            base = check.results.known(line, metric)
            if len(base) > 1:
                shown = [
                    _margin(check, algorithm, index, metric, base, "above").text
                    for index in check.results.known(points, metric)
                ]
                notes += [f"beside: {', '.join(shown)}"] if shown else []
    return Finding(effects, missing, notes)


def hypervolumes(check: Check) -> Finding[Effect]:
    """Compare the hypervolume of one sweep with another's, for each algorithm and metric."""
    effects, missing = [], []
    for algorithm in check.entry["algorithms"]:
        sweeps = [check.results.sweep(algorithm, method) for method in (check.entry["method"], "ma")]
        for metric in check.entry["conditions"]:
            one, other = (check.results.known(sweep, metric) for sweep in sweeps)
            reference = check.reference(algorithm, metric)
            if len(one) < 2 or len(other) < 2 or reference is None:
                missing.append(f"no sweeps of {check.entry['method']} and ma with {metric} of {algorithm}")
                continue
            left, right = check.pairs(one, metric), check.pairs(other, metric)

            def share(values: Values, left: Any = left, right: Any = right, reference: Any = reference) -> float:
                volume = hypervolume(right(values), reference)
                return 100 * (hypervolume(left(values), reference) / volume - 1) if volume else np.inf

            label = f"{algorithm} {metric}"
            effects.append(check.effect(label, metric, share, "above", floor=0.0, text=_percent(label)))
    return Finding(effects, missing)


def order(check: Check) -> Finding[Effect]:
    """Compare the hypervolumes of sweeps on the ratios that they share, one after the other."""
    entry, results = check.entry, check.results
    algorithm, metric = entry["algorithm"], entry["metric"]
    named = {
        (f"K={groups}" if groups else "MA"): results.sweep(algorithm, "hma" if groups else "ma", groups=groups)
        for groups in entry["groups"]
    }
    inner = {
        name: results.known([index for index in sweep if 0 < (results.points[index].alpha or 0) < 1], metric)
        for name, sweep in named.items()
    }
    reference = check.reference(algorithm, metric)
    absent = [name for name, sweep in inner.items() if not sweep]
    shared = set.intersection(
        *({round(results.points[index].alpha or 0, 6) for index in row} for row in inner.values())
    )
    if absent or reference is None or not shared:
        return Finding(missing=[f"no {metric} of {', '.join(absent) or 'sweeps with shared ratios'} ({algorithm})"])
    kept = {
        name: [index for index in row if round(results.points[index].alpha or 0, 6) in shared]
        for name, row in inner.items()
    }
    volumes = {name: hypervolume(check.pairs(row, metric)(results.values), reference) for name, row in kept.items()}
    effects = []
    for one, other in pairwise(kept):
        left, right = check.pairs(kept[one], metric), check.pairs(kept[other], metric)

        def difference(values: Values, left: Any = left, right: Any = right, reference: Any = reference) -> float:
            return hypervolume(left(values), reference) - hypervolume(right(values), reference)

        effects.append(check.effect(f"{one}-{other}", metric, difference, "above", floor=0.0))
    notes = ["hypervolumes " + ", ".join(f"{name} {volume:.2f}" for name, volume in volumes.items())]
    first, second = list(kept)[:2]
    gaps = [
        f"{results.points[left].alpha:g}: reward {results.values[left, 0] - results.values[right, 0]:+.3f}"
        for right, left in zip(kept[first], kept[second], strict=True)
    ]
    return Finding(effects, notes=[*notes, f"{second} against {first} at {', '.join(gaps)}"])


def lines(check: Check) -> Finding[Effect]:
    """Compare two algorithms' MA lines at places between θ_0 and the reward that both reach."""
    entry, results = check.entry, check.results
    metric = entry["metric"]
    found = two_sweeps(check, metric)
    if isinstance(found, str):
        return Finding(missing=[found])
    one, other = (check.pairs(sweep, metric) for sweep in found)
    starts = [index for algorithm in entry["algorithms"] if (index := results.pre(algorithm)) is not None]
    if not starts:
        return Finding(missing=[f"no θ_0 of {' or '.join(entry['algorithms'])}"])
    low = max(results.values[index, 0] for index in starts)
    high = min(results.values[sweep, 0].max() for sweep in found)
    if high <= low:
        return Finding(missing=[f"{' and '.join(entry['algorithms'])} share no rewards above θ_0"])
    first, last = entry["anchors"]
    effects = []
    for at in entry["at"]:
        place = low + (at - first) / (last - first) * (high - low)

        def difference(values: Values, place: float = place) -> float:
            left, right = line_value(one(values), place), line_value(other(values), place)
            return np.inf if right is None else -np.inf if left is None else left - right

        effects.append(check.effect(f"{metric} at {place:.3g}", metric, difference, "above"))
    return Finding(effects)


def _margin(check: Check, algorithm: str, index: int, metric: str, base: Sequence[int], condition: str) -> Effect:
    line, column = check.pairs(base, metric), check.results.column(metric)

    def compute(values: Values) -> float:
        found = margin((float(values[index, 0]), float(values[index, column])), line(values))
        return np.inf if found is None else found

    label = f"{algorithm} {check.results.label(index)} {metric}"
    return check.effect(label, metric, compute, condition)


def _front(check: Check, indices: Sequence[int], metric: str) -> list[int]:
    mask = non_dominated(check.pairs(indices, metric)(check.results.values))
    return [index for index, kept in zip(indices, mask, strict=True) if kept]


def _grid_note(check: Check, indices: Sequence[int], base: Sequence[int], metric: str) -> Iterator[str]:
    """Yield how many points are dominated by a point of the MA grid, and which other one comes nearest to the line."""
    values, grid = check.results.values, check.pairs(base, metric)(check.results.values)
    points = check.pairs(indices, metric)(values)
    beaten = [bool(((grid >= point).all(axis=1) & (grid > point).any(axis=1)).any()) for point in points]
    found = [margin((float(x), float(y)), grid) for x, y in points]
    gaps = [np.inf if value is None else value for value in found]
    nearest = int(np.argmax(gaps))
    yield (
        f"{metric}: {sum(beaten)} of {len(points)} dominated by a point of the MA grid; nearest to the line "
        f"{check.results.label(indices[nearest])} at {points[nearest, 0]:.3f} ({number(gaps[nearest], metric)})"
    )


def _percent(label: str) -> Callable[[float], str]:
    return lambda value: f"{label} {value:+.1f} %"


def two_sweeps(check: Check, metric: str) -> tuple[list[int], list[int]] | str:
    """Return the MA sweeps of two algorithms, or what is missing."""
    names = check.entry["algorithms"]
    one, other = (check.results.known(check.results.sweep(name, "ma"), metric) for name in names)
    if len(one) < 2 or len(other) < 2:
        return f"no MA sweeps of {' and '.join(names)} with {metric}"
    return one, other
