"""What a set of scores says of a claim, instance by instance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from reproalign.dtm.study.scores import Score

CLEAR = 2.0  # standard errors


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


def difference(left: Score, right: Score) -> tuple[float, float | None]:
    """Return left - right, and how many unpaired standard errors that is."""
    value = left.value - right.value
    if left.stderr is None or right.stderr is None:
        return value, None
    error = math.hypot(left.stderr, right.stderr)
    return value, value / error if error else None
