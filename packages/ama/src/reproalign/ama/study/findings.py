"""What a set of results says of a claim, instance by instance."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

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
        text: what is shown.
    """

    label: str
    metric: str
    value: float
    met: bool
    interval: Interval | None
    floor: float
    text: str

    @property
    def clear(self) -> bool:
        """The value is beyond the floor, and the interval, where there is one, on one side of 0."""
        away = abs(self.value) > self.floor
        return away and (self.interval is None or self.interval.low > 0 or self.interval.high < 0)


@dataclass(frozen=True)
class Finding:
    """What a set of results says of a claim.

    Attributes:
        effects: one for each instance; none if the claim could not be tested.
        missing: what could not be tested, and why.
        notes: what was measured beside, which decides nothing.
    """

    effects: list[Effect] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def met(self) -> int:
        """Instances that are borne out."""
        return sum(effect.met for effect in self.effects)

    @property
    def verdict(self) -> str:
        """``supported``, ``contradicted``, ``in part`` or ``not testable``."""
        if not self.effects:
            return "not testable"
        return "supported" if self.met == len(self.effects) else "in part" if self.met else "contradicted"


def joined(findings: Iterable[Finding]) -> Finding:
    """Put the findings of a claim's checks together."""
    listed = list(findings)
    return Finding(
        [effect for finding in listed for effect in finding.effects],
        list(dict.fromkeys(text for finding in listed for text in finding.missing)),
        [text for finding in listed for text in finding.notes],
    )


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
