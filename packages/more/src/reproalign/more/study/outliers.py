"""Outliers among reward differences, by a stated rule: the paper's Tables 4 to 6 count them and do not say by which."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reproalign.common.errors import UserError
from reproalign.more.study.config import OutliersConfig


@dataclass(frozen=True)
class Outliers:
    """How many there are on one side of 0, their mean (NaN for none), and how many pairs that side has."""

    count: int
    mean: float
    pairs: int


def check_outliers(rule: OutliersConfig) -> None:
    """Refuse a bound that the rule cannot have.

    Raises:
        UserError: naming the key.
    """
    if rule.rule == "share" and rule.bound >= 1:
        raise UserError(f"outliers.bound={rule.bound} must be below 1, for outliers.rule=share")


def outliers(margins: ArrayLike, rule: OutliersConfig) -> tuple[Outliers, Outliers]:
    """Return the outliers of the right pairs, whose margin is above 0, and of the wrong ones, below.

    Each side is taken by itself, by its absolute values a: ``tukey`` takes a > Q3 + bound (Q3 - Q1), ``sd``
    a > mean + bound · standard deviation, ``share`` the largest ⌊bound · n⌋ of them.

    Args:
        margins: (pairs,) reward of the better response minus that of the worse.
        rule: which are outliers.
    """
    values = np.asarray(margins, dtype=np.float64)
    right, wrong = (_one_side(side, rule) for side in (values[values > 0], -values[values < 0]))
    return right, Outliers(wrong.count, -wrong.mean, wrong.pairs)


def _one_side(sizes: NDArray[np.float64], rule: OutliersConfig) -> Outliers:
    if not len(sizes):
        return Outliers(0, float("nan"), 0)
    if rule.rule == "share":
        chosen = np.sort(sizes)[len(sizes) - int(rule.bound * len(sizes)) :]
    elif rule.rule == "sd":
        chosen = sizes[sizes > sizes.mean() + rule.bound * sizes.std()]
    else:
        lower, upper = np.quantile(sizes, [0.25, 0.75])
        chosen = sizes[sizes > upper + rule.bound * (upper - lower)]
    return Outliers(len(chosen), float(chosen.mean()) if len(chosen) else float("nan"), len(sizes))
