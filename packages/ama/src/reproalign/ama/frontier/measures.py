"""What ``ama evaluate`` reports: mean reward, discard rate, length, perplexity, KL; each with its interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from reproalign.common.evaluation.losses import RowLoss
from reproalign.common.evaluation.pareto import resampled_means


@dataclass(frozen=True)
class Resampling:
    """How intervals are made: percentile bootstrap over prompts or texts (Efron, 1979).

    Attributes:
        confidence: in (0, 1).
        resamples: of the bootstrap.
        seed: of its draws.
    """

    confidence: float
    resamples: int
    seed: int


@dataclass(frozen=True)
class Estimate:
    """A number, its standard error, and its interval; None of these where one item was measured.

    Attributes:
        value: of all items.
        stderr: standard error over items.
        low: lower end of the bootstrap interval.
        high: upper end.
        items: prompts or texts.
    """

    value: float
    stderr: float | None
    low: float | None
    high: float | None
    items: int


def mean_estimate(values: Sequence[float], how: Resampling) -> Estimate:
    """Return the mean over prompts, s/√N as its standard error, and its bootstrap interval."""
    found = np.asarray(values, dtype=np.float64)
    if len(found) < 2:
        return Estimate(float(found.mean()), None, None, None, len(found))
    draws = resampled_means(found[:, None], how.resamples, how.seed)[:, 0]
    low, high = _ends(draws, how)
    return Estimate(float(found.mean()), float(found.std(ddof=1) / math.sqrt(len(found))), low, high, len(found))


def loss_estimate(sums: Sequence[float], tokens: Sequence[int], how: Resampling) -> Estimate:
    """Return L = Σ_i s_i / Σ_i n_i in nats per token; standard error and interval from resampled texts.

    Args:
        sums: of each text's losses, in nats.
        tokens: of each text.
        how: to resample.
    """
    table = np.asarray([sums, tokens], dtype=np.float64).T
    value = float(table[:, 0].sum() / table[:, 1].sum())
    if len(table) < 2:
        return Estimate(value, None, None, None, len(table))
    draws = resampled_means(table, how.resamples, how.seed)
    ratios = draws[:, 0] / draws[:, 1]
    low, high = _ends(ratios, how)
    return Estimate(value, float(ratios.std(ddof=1)), low, high, len(table))


def perplexity(loss: Estimate) -> Estimate:
    """Return exp(L); its standard error by the delta method, exp(L) times that of L."""
    value = math.exp(loss.value)
    ends = [None if end is None else math.exp(end) for end in (loss.low, loss.high)]
    return Estimate(value, None if loss.stderr is None else value * loss.stderr, ends[0], ends[1], loss.items)


def log_ratios(policy: Sequence[RowLoss], reference: Sequence[RowLoss]) -> list[float]:
    """Return log π(y|x) - log π_0(y|x) of each response, in nats: their mean over y ~ π estimates KL(π ‖ π_0)."""
    return [other.nll - own.nll for own, other in zip(policy, reference, strict=True)]


def _ends(draws: Float[np.ndarray, " resamples"], how: Resampling) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - how.confidence) / 2, (1 + how.confidence) / 2])
    return float(low), float(high)
