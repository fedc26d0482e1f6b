"""The kinds of claims: what their instances are, and when one is borne out (:mod:`reproalign.dtm.study.claims`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from reproalign.common.study.findings import Finding
from reproalign.dtm.study.findings import Curve, Effect, difference
from reproalign.dtm.study.scores import BenchmarkRow, Scores, mean_score, row_of

CONDITIONS: dict[str, Callable[[float], bool]] = {
    "above": lambda difference: difference > 0,
    "not_below": lambda difference: difference >= 0,
    "below": lambda difference: difference < 0,
}


def benchmarks(on: str | Sequence[str], paper: Mapping[str, Any]) -> list[str]:
    """Return the benchmarks that ``on`` stands for: a list in ``paper.yaml`` by its name, or the list itself."""
    return list(paper[on] if isinstance(on, str) else on)


def differences(claim: Mapping[str, Any], paper: Mapping[str, Any], scores: Scores, on: list[str]) -> Finding[Effect]:
    """Compare ``left`` with ``right`` on each benchmark, pair by pair."""
    condition, effects, missing = CONDITIONS[claim["kind"]], [], []
    pairs = list(zip(claim["left"], claim["right"], strict=True))
    for left, right in pairs:
        rows = _rows(scores, claim["setting"], [left, right], on)
        missing += rows.missing
        for name in rows.benchmarks:
            value, z = difference(rows.rows[left][name], rows.rows[right][name])
            label = name if len(pairs) == 1 else f"{left}-{right} {name}"
            effects.append(Effect(label, value, z, condition(value), f"{value:+.2f}"))
    values = [effect.value for effect in effects if effect.value is not None]
    mean = math.fsum(values) / len(values) if values and len(pairs) == 1 else None
    return Finding(effects, _distinct(missing), mean=mean)


def mean_above(claim: Mapping[str, Any], paper: Mapping[str, Any], scores: Scores, on: list[str]) -> Finding[Effect]:
    """Compare the mean of ``left`` with that of each of ``right``, and count the benchmarks that it wins."""
    (left,) = claim["left"]
    effects, missing = [], []
    for right in _methods(claim["right"], paper):
        rows = _rows(scores, claim["setting"], [left, right], on)
        missing += rows.missing
        if not rows.benchmarks:
            continue
        one, other = rows.rows[left], rows.rows[right]
        means = [mean_score(row, rows.benchmarks) for row in (one, other)]
        assert means[0] is not None  # rows have these benchmarks
        assert means[1] is not None
        value, z = difference(means[0], means[1])
        wins = sum(one[name].value > other[name].value for name in rows.benchmarks)
        text = f"{right} {value:+.2f} ({wins} of {len(rows.benchmarks)})"
        effects.append(Effect(right, value, z, value > 0, text))
    return Finding(effects, _distinct(missing))


def best(claim: Mapping[str, Any], paper: Mapping[str, Any], scores: Scores, on: list[str]) -> Finding[Effect]:
    """Compare ``left`` with the highest of all others, on each benchmark."""
    (left,) = claim["left"]
    rows = _present(claim, paper, scores, on, [left], least=2)
    effects = []
    for name in rows.benchmarks:
        others = {method: row[name].value for method, row in rows.rows.items() if method != left}
        top = max(others, key=lambda method: others[method])
        mine = rows.rows[left][name]
        value, z = difference(mine, rows.rows[top][name])
        sign = ">" if value > 0 else "=" if value == 0 else "<"
        effects.append(Effect(name, value, z, value > 0, f"{name} {mine.value:.2f} {sign} {top} {others[top]:.2f}"))
    return Finding(effects, _distinct(rows.missing))


def second(claim: Mapping[str, Any], paper: Mapping[str, Any], scores: Scores, on: list[str]) -> Finding[Effect]:
    """Count, for each of ``left``, the benchmarks on which exactly one other is above it."""
    rows = _present(claim, paper, scores, on, claim["left"], least=3)
    effects = []
    for left in claim["left"] if rows.benchmarks else []:
        places = []
        for name in rows.benchmarks:
            mine = rows.rows[left][name].value
            others = {method: row[name].value for method, row in rows.rows.items() if method != left}
            if sum(value > mine for value in others.values()) == 1:
                tied = [method for method, value in others.items() if value == mine]
                places.append(f"{name} (tied with {', '.join(tied)})" if tied else name)
        text = f"{left}: {' '.join(places) or 'none'}"
        effects.append(Effect(left, None, None, len(places) >= claim["at_least"], text))
    return Finding(effects, _distinct(rows.missing))


def fall(claim: Mapping[str, Any], scores: Scores, curves: Mapping[str, Curve]) -> Finding[Effect]:
    """Compare the last value of each curve with its highest."""
    effects, notes = [], []
    for name in claim["curves"]:
        curve = curves.get(name)
        if curve:
            value = curve.values[-1] - max(curve.values)
            effects.append(Effect(name, value, None, value < 0, f"{value:+.2f}"))
    for entry in claim.get("beside", []):
        curve, row = curves.get(entry["curve"]), row_of(scores, entry["setting"], entry["against"])
        score = row.get(entry["benchmark"]) if row else None
        if curve and score:
            at = curve.peak()
            relation = "above" if curve.values[at] > score.value else "not above"
            notes.append(
                f"{entry['curve']}: {curve.values[at]:.2f} at {curve.fractions[at]:.0%} is {relation} "
                f"{entry['against']}'s {score.value:.2f}"
            )
    absent = [name for name in claim["curves"] if name not in curves]
    return Finding(effects, [f"no curve {', '.join(absent)}"] if absent else [], notes)


def beside(claim: Mapping[str, Any], paper: Mapping[str, Any], scores: Scores) -> Iterator[str]:
    """Yield in words what a claim has measured beside: a mean against a mean, or who is above where."""
    for entry in claim.get("beside", []):
        left, right = entry["left"], entry["right"]
        whole = entry["across"] == "mean"
        rows = _rows(
            scores, claim["setting"], [left, right], benchmarks(claim["across"] if whole else entry["across"], paper)
        )
        if not rows.benchmarks:
            continue
        if whole:
            means = [mean_score(rows.rows[method], rows.benchmarks) for method in (left, right)]
            assert means[0] is not None  # rows have these benchmarks
            assert means[1] is not None
            relation = "above" if means[0].value > means[1].value else "not above"
            yield f"{left}'s mean {means[0].value:.2f} is {relation} {right}'s {means[1].value:.2f}"
        else:
            over = [name for name in rows.benchmarks if rows.rows[right][name].value > rows.rows[left][name].value]
            yield f"{right} is above {left} in {len(over)} of {len(rows.benchmarks)}: {', '.join(over) or 'none'}"


@dataclass(frozen=True)
class _Rows:
    """Rows that can be compared, and on what; ``missing`` says what the scores lack."""

    rows: dict[str, BenchmarkRow]
    benchmarks: list[str]
    missing: list[str]


def _rows(scores: Scores, setting: str, methods: Sequence[str], on: Sequence[str]) -> _Rows:
    found = {method: row_of(scores, setting, method) for method in methods}
    rows = {method: row for method, row in found.items() if row is not None}
    absent = [method for method in methods if method not in rows]
    if absent:
        return _Rows(rows, [], [f"no row {' and '.join(absent)}"])
    common = [name for name in on if all(name in row for row in rows.values())]
    lacking = [name for name in on if name not in common]
    return _Rows(rows, common, [f"{' or '.join(methods)} lacks {', '.join(lacking)}"] if lacking else [])


def _present(
    claim: Mapping[str, Any],
    paper: Mapping[str, Any],
    scores: Scores,
    on: Sequence[str],
    needed: Sequence[str],
    *,
    least: int,
) -> _Rows:
    """Return the rows of those methods of ``among`` that there are, if the needed ones and ``least`` in all are."""
    among = _methods(claim["among"], paper)
    there = [method for method in among if row_of(scores, claim["setting"], method) is not None]
    if len(there) < least or not set(needed) <= set(there):
        return _Rows({}, [], [f"needs {', '.join(needed)} and others of the main table"])
    rows = _rows(scores, claim["setting"], there, on)
    absent = [method for method in among if method not in there]
    return _Rows(rows.rows, rows.benchmarks, [*([f"without {', '.join(absent)}"] if absent else []), *rows.missing])


def _methods(names: str | Sequence[str], paper: Mapping[str, Any]) -> list[str]:
    return list(paper["methods"][names] if isinstance(names, str) else names)


def _distinct(parts: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(parts))
