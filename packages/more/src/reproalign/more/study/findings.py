"""What a set of results says of a claim, instance by instance."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reproalign.more.study.results import ResultKey, Value

CONDITIONS = ("above", "below", "not_below")
CLEAR = 2.0  # standard errors
POINTS = ("accuracy", "gpt4_win")  # fractions that are shown in percentage points


@dataclass(frozen=True)
class Effect:
    """One instance of a claim.

    Attributes:
        label: what it is about.
        metric: whose unit the value has.
        value: a difference, or what has to be above 0.
        error: its standard error: of the results, otherwise of the estimator; None: not known.
        met: whether the numbers bear the instance out.
    """

    label: str
    metric: str
    value: float
    error: float | None
    met: bool

    @property
    def clear(self) -> bool | None:
        """Whether it is two standard errors away from 0; None where these are not known."""
        return None if self.error is None else abs(self.value) >= CLEAR * self.error

    @property
    def text(self) -> str:
        """Label and value, in percentage points for accuracies and win rates, with the error if it is known."""
        scale, digits = (100, 2) if self.metric in POINTS else (1, 2 if "perplexity" in self.metric else 4)
        error = "" if self.error is None else f" ± {scale * self.error:.{digits}f}"
        return f"{self.label} {scale * self.value:+.{digits}f}{error}"

    def values(self) -> dict[str, Any]:
        """Return metric, value and standard error."""
        return {"metric": self.metric, "value": self.value, "error": self.error}


@dataclass(frozen=True)
class Check:
    """One check of a claim on one set of results.

    Attributes:
        entry: of ``paper.yaml``.
        results: the numbers.
        noise: metric -> domain -> standard deviation of a difference by chance, for numbers without errors.
    """

    entry: Mapping[str, Any]
    results: Mapping[ResultKey, Value]
    noise: Mapping[str, Any]

    def value(self, base: str, scheme: str, domain: str, metric: str) -> Value | None:
        """Return a number, None if it is not there."""
        return self.results.get(ResultKey(base, scheme, domain, metric))

    def difference(self, label: str, left: Value, right: Value, metric: str, domain: str, condition: str) -> Effect:
        """Compare two numbers; ``above`` 0, ``below`` 0, or ``not_below``."""
        error: float | None = None
        if left.error is not None and right.error is not None:
            error = math.hypot(left.error, right.error)
        elif (chance := self.noise.get(metric)) is not None:
            error = chance.get(domain)
        gap = left.value - right.value
        met = gap < 0 if condition == "below" else gap > 0 if condition == "above" else gap >= 0
        return Effect(label, metric, gap, error, met)
