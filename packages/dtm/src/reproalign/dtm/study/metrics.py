"""Measures of held-out responses: loss per token, its interval, perplexity, and two token accuracies.

A row i has n_i supervised tokens with losses ℓ_{i,t} in nats. The token mean is L = Σ_i Σ_t ℓ_{i,t} / Σ_i n_i: every
token weighs the same, whatever row it stands in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A number and its percentile bootstrap interval.

    Attributes:
        value: of all rows.
        low: the lower end; None where there are too few rows to draw from.
        high: the upper end.
    """

    value: float
    low: float | None
    high: float | None


def token_mean(sums: ArrayLike, tokens: ArrayLike) -> float:
    """Return Σ_i s_i / Σ_i n_i of per-row sums and numbers of tokens, in float64; NaN without tokens."""
    total = np.asarray(tokens, dtype=np.float64).sum()
    return float(np.asarray(sums, dtype=np.float64).sum() / total) if total else math.nan


def bootstrap_token_mean(
    sums: ArrayLike, tokens: ArrayLike, *, confidence: float, resamples: int, seed: int
) -> Interval:
    """Return the token mean with the percentile bootstrap interval over rows (Efron, 1979).

    A resample draws as many rows as there are, with replacement, and takes Σ s / Σ n of them; the interval lies
    between the quantiles (1 ∓ confidence) / 2 of ``resamples`` of these. The same seed gives the same interval.

    Args:
        sums: (rows,) per-row sums, e.g. of losses in nats.
        tokens: (rows,) per-row numbers of tokens.
        confidence: in (0, 1).
        resamples: at least 1.
        seed: of the draws.
    """
    s, n = np.asarray(sums, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
    if len(s) < 2 or not n.sum():
        return Interval(token_mean(s, n), None, None)
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    for index in range(resamples):
        drawn = generator.integers(0, len(s), len(s))
        count = n[drawn].sum()
        means[index] = s[drawn].sum() / count if count else np.nan
    low, high = np.nanquantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(token_mean(s, n), float(low), float(high))


def perplexity(loss: float) -> float:
    """Return exp(loss), infinity where that is beyond a float (as the release has it)."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def masked_accuracy(correct: int, supervised: int) -> float:
    """Return the share of supervised tokens that greedy decoding would have chosen; NaN without any."""
    return correct / supervised if supervised else math.nan


def released_accuracy(correct: int, widths: Sequence[int]) -> float:
    """Return the token accuracy of the release's ``compute_metrics``.

    It averages [argmax = label] over *all* shifted positions. In its own batch a position with label -100 counts as
    wrong; batches of other widths are then padded with -100 on both sides to the widest, which counts as correct.
    With rows i in batches of width w_i and W = max_i w_i

        (correct + Σ_i max(0, W - 1 - w_i)) / (rows · (W - 1)).

    Args:
        correct: supervised tokens that the arg-max hits.
        widths: (rows,) width of the batch that each row was in, padding included.

    Returns:
        A share, NaN if no position is left after the shift.
    """
    widest = max(widths, default=0)
    positions = len(widths) * (widest - 1)
    if positions <= 0:
        return math.nan
    return (correct + sum(max(0, widest - 1 - width) for width in widths)) / positions
