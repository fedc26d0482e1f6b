r"""Calibration of pairwise preferences.

A pair with margin d = r_w - r_l is won with probability s = σ(d). The model's confidence is c = max(s, 1 - s), and it
is right when d > 0. Over M bins of the confidence

    ECE = Σ_m (n_m / N) |accuracy_m - confidence_m|,   MCE = max_m |accuracy_m - confidence_m|
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reproalign.common.errors import choose

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Bin:
    """One bar of a reliability diagram."""

    index: int
    count: int
    accuracy: float
    confidence: float


@dataclass(frozen=True)
class Calibration:
    """Expected and maximum calibration error, and the non-empty bins; ``edges`` has one more entry than bins."""

    ece: float
    mce: float
    bins: list[Bin]
    edges: list[float]
    confidence: list[float]
    correct: list[float]


def sigmoid(margins: ArrayLike) -> Floats:
    """σ(d), without overflow."""
    values = np.asarray(margins, dtype=np.float64)
    decay = np.exp(-np.abs(values))
    return np.where(values >= 0, 1.0, decay) / (1.0 + decay)


def calibration(
    margins: ArrayLike, *, n_bins: int = 10, lower_edge: float = 0.5, binning: str = "uniform"
) -> Calibration:
    """Compute ECE and MCE (module docstring).

    Args:
        margins: (N,) reward margins d of chosen over rejected; for a policy β·h.
        n_bins: M.
        lower_edge: where equal-width bins begin: 1/2, or 0 for comparison with other work.
        binning: ``uniform`` (equal width, right-closed, the first also left-closed) or ``quantile`` (equal mass).

    Raises:
        ValueError: for no margins, or fewer than one bin.
    """
    choose("binning", binning, ["uniform", "quantile"])
    values = np.asarray(margins, dtype=np.float64)
    if not len(values) or n_bins < 1:
        raise ValueError(f"calibration needs margins and at least one bin, got {len(values)} and {n_bins}")
    probability = sigmoid(values)
    confidence = np.maximum(probability, 1 - probability)
    correct = (values > 0).astype(np.float64)
    edges = np.linspace(lower_edge, 1.0, n_bins + 1)
    if binning == "quantile":
        edges = np.quantile(confidence, np.linspace(0, 1, n_bins + 1))
    index = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, n_bins - 1)
    bins = [
        Bin(m, int(inside.sum()), float(correct[inside].mean()), float(confidence[inside].mean()))
        for m in range(n_bins)
        if (inside := index == m).any()
    ]
    gaps = [(bin.count / len(values), abs(bin.accuracy - bin.confidence)) for bin in bins]
    return Calibration(
        ece=sum(share * gap for share, gap in gaps),
        mce=max(gap for _, gap in gaps),
        bins=bins,
        edges=edges.tolist(),
        confidence=confidence.tolist(),
        correct=correct.tolist(),
    )


def soft_target_errors(margins: ArrayLike, targets: ArrayLike) -> dict[str, float]:
    """Compare s = σ(d) with soft targets q: mean KL(Bern(q) || Bern(s)) in nats, and mean (s - q)² (Brier)."""
    values, q = np.asarray(margins, dtype=np.float64), np.asarray(targets, dtype=np.float64)
    log_s, log_not_s = -np.logaddexp(0, -values), -np.logaddexp(0, values)
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = np.where(q > 0, q * np.log(q), 0.0) + np.where(q < 1, (1 - q) * np.log(1 - q), 0.0)
    return {
        "soft_kl": float(np.mean(entropy - q * log_s - (1 - q) * log_not_s)),
        "brier": float(np.mean((sigmoid(values) - q) ** 2)),
    }
