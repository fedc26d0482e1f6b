"""How measured values vary from run to run: mean, standard deviation, and an interval for the mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

CONFIDENCE = 0.95
METHOD = (
    "mean ± t · s / √n: the 95% interval of Student's t with n - 1 degrees of freedom, which takes the runs for "
    "independent draws from a normal distribution"
)


@dataclass(frozen=True)
class Spread:
    """What n runs say of a measure.

    Attributes:
        values: of the runs, in their order.
        mean: their mean.
        sd: their standard deviation, with n - 1; None for one run.
        low: lower end of the interval for the mean (see METHOD); None for one run.
        high: its upper end.
    """

    values: list[float]
    mean: float
    sd: float | None
    low: float | None
    high: float | None


def spread(values: Sequence[float]) -> Spread:
    """Return mean, standard deviation and the 95% interval of Student's t for the mean of ``values``."""
    mean = fmean(values)
    if len(values) < 2:
        return Spread(list(values), mean, None, None, None)
    from scipy.stats import t

    sd = stdev(values)
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * sd / math.sqrt(len(values))
    return Spread(list(values), mean, sd, mean - half, mean + half)


def paired_differences(base: Mapping[int, float], other: Mapping[int, float]) -> Spread | None:
    """Return the spread of ``other - base`` over the seeds that both have; None if they share none.

    What two settings have in common under one seed (data order, first weights) leaves the difference, so its interval
    is often narrower than either's own.
    """
    seeds = sorted(base.keys() & other.keys())
    return spread([other[seed] - base[seed] for seed in seeds]) if seeds else None
