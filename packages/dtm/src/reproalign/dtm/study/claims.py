"""The paper's claims, which ``paper.yaml`` holds as data, checked on a set of scores.

The kinds, with m the number of instances that a claim makes and k those that the scores bear out:

    above, not_below, below   s(left, b) > s(right, b), ≥, <, for each benchmark b (and pair)
    mean_above                mean_b s(left, b) > mean_b s(right, b), for each of ``right``
    best                      s(left, b) > s(other, b) for all others in ``among``, for each benchmark b
    second                    exactly one other is above on at least ``at_least`` benchmarks, for each of ``left``
    fall                      the last value of a curve is below its highest, for each curve

A difference d of two scores with standard errors s, s' over items has z = d / √(s² + s'²), as if the two were measured
on different items: |z| ≥ 2 is called clear.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from reproalign.common.errors import UserError
from reproalign.dtm.study.scores import Row, Score, Scores, mean_score, row_of

CLEAR = 2.0  # standard errors
CONDITIONS: dict[str, Callable[[float], bool]] = {
    "above": lambda difference: difference > 0,
    "not_below": lambda difference: difference >= 0,
    "below": lambda difference: difference < 0,
}


@dataclass(frozen=True)
class Effect:
    """One instance of a claim.

    Attributes:
        label: what it is about: a benchmark, a method, a curve.
        value: the difference, in points; None where the claim is about ranks.
        z: in standard errors; None where they are not known.
        met: whether the scores bear the instance out.
        text: what is shown.
    """

    label: str
    value: float | None
    z: float | None
    met: bool
    text: str


@dataclass(frozen=True)
class Finding:
    """What a set of scores says of a claim.

    Attributes:
        effects: one for each instance; none if the claim could not be checked.
        missing: what could not be checked for want of scores.
        notes: what was measured beside.
        mean: of the differences over the benchmarks of one pair of methods; None for other instances.
    """

    effects: list[Effect] = field(default_factory=list)
    missing: str | None = None
    notes: list[str] = field(default_factory=list)
    mean: float | None = None

    @property
    def met(self) -> int:
        """Instances that are borne out."""
        return sum(effect.met for effect in self.effects)

    @property
    def verdict(self) -> str:
        """``yes``, ``no``, ``k of m``, or ``not checked``."""
        if not self.effects:
            return "not checked"
        met, count = self.met, len(self.effects)
        return "yes" if met == count else "no" if not met else "in part"

    @property
    def largest_z(self) -> Effect | None:
        """The effect that is most standard errors from 0; None where no error is known."""
        known = [effect for effect in self.effects if effect.z is not None]
        return max(known, key=lambda effect: abs(effect.z or 0.0)) if known else None


@dataclass(frozen=True)
class Curve:
    """Scores against the fraction of the data, fractions ascending; fraction 0 is the base model."""

    fractions: list[float]
    values: list[float]

    def peak(self) -> int:
        """Return the index of the highest value, the first of equal ones."""
        return self.values.index(max(self.values))


def published_curves(paper: Mapping[str, Any]) -> dict[str, Curve]:
    """Return the curves of the paper's figures."""
    return {name: Curve(entry["fractions"], entry["values"]) for name, entry in paper["curves"].items()}


def check_claim(
    claim: Mapping[str, Any], paper: Mapping[str, Any], scores: Scores, curves: Mapping[str, Curve]
) -> Finding:
    """Check one claim.

    Args:
        claim: of ``paper.yaml``.
        paper: all of it: methods, benchmarks, ``nine``, ``categories``.
        scores: setting -> method -> benchmark.
        curves: by the names of ``paper.yaml``.

    Raises:
        UserError: for a kind that there is not.
    """
    kind = claim["kind"]
    if kind == "fall":
        return _fall(claim, scores, curves)
    on = benchmarks(claim["across"], paper)
    checks = {"mean_above": _mean_above, "best": _best, "second": _second}
    if kind not in checks and kind not in CONDITIONS:
        raise UserError(f"paper.yaml: unknown kind of claim '{kind}'")
    finding = checks.get(kind, _differences)(claim, paper, scores, on)
    return replace(finding, notes=[*finding.notes, *_beside(claim, paper, scores)])


def benchmarks(on: str | Sequence[str], paper: Mapping[str, Any]) -> list[str]:
    """Return the benchmarks that ``on`` stands for: a list in ``paper.yaml`` by its name, or the list itself."""
    return list(paper[on] if isinstance(on, str) else on)


def difference(left: Score, right: Score) -> tuple[float, float | None]:
    """Return left - right, and how many unpaired standard errors that is."""
    value = left.value - right.value
    if left.stderr is None or right.stderr is None:
        return value, None
    error = math.hypot(left.stderr, right.stderr)
    return value, value / error if error else None


def _differences(claim: Mapping[str, Any], paper: Mapping[str, Any], scores: Scores, on: list[str]) -> Finding:
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
    return Finding(effects, _joined(missing), mean=mean)


def _mean_above(claim: Mapping[str, Any], paper: Mapping[str, Any], scores: Scores, on: list[str]) -> Finding:
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
    return Finding(effects, _joined(missing))


def _best(claim: Mapping[str, Any], paper: Mapping[str, Any], scores: Scores, on: list[str]) -> Finding:
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
    return Finding(effects, _joined(rows.missing))


def _second(claim: Mapping[str, Any], paper: Mapping[str, Any], scores: Scores, on: list[str]) -> Finding:
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
    return Finding(effects, _joined(rows.missing))


def _fall(claim: Mapping[str, Any], scores: Scores, curves: Mapping[str, Curve]) -> Finding:
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
    return Finding(effects, f"no curve {', '.join(absent)}" if absent else None, notes)


def _beside(claim: Mapping[str, Any], paper: Mapping[str, Any], scores: Scores) -> Iterator[str]:
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

    rows: dict[str, Row]
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


def _joined(parts: Sequence[str]) -> str | None:
    return "; ".join(dict.fromkeys(parts)) or None
