"""What a set of scores says of a claim, instance by instance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reproalign.dtm.study.scores import BenchmarkScore

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

    @property
    def clear(self) -> bool | None:
        """The difference is at least two standard errors; None where these are not known."""
        return None if self.z is None else abs(self.z) >= CLEAR

    def values(self) -> dict[str, Any]:
        """Return the difference, and how many standard errors it is."""
        return {"difference": self.value, "standard_errors": self.z}


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


def difference(left: BenchmarkScore, right: BenchmarkScore) -> tuple[float, float | None]:
    """Return left - right, and how many unpaired standard errors that is."""
    value = left.value - right.value
    if left.stderr is None or right.stderr is None:
        return value, None
    error = math.hypot(left.stderr, right.stderr)
    return value, value / error if error else None
