r"""Calibration of pairwise preferences, in two forms, how much of an error is noise, and temperature scaling.

A pair with margin d = r_w - r_l is won with probability s = σ(d). Predictions c and outcomes y are put into M bins:

    ECE = Σ_m (n_m / N) |ȳ_m - c̄_m|,   ACE = mean over non-empty bins of |ȳ_m - c̄_m|,   MCE = max_m |ȳ_m - c̄_m|

:func:`calibration`: c = max(s, 1 - s) on [1/2, 1] is the model's *confidence*, and y = 1[d > 0] says that it is right.
:func:`probability_calibration`: c = p on [0, 1] is the *probability* of an event, and y says whether it took place.
With pairs as such events every pair enters in both orders, as (s, 1) and as (1 - s, 0).

The second is the first with its bins mirrored at 1/2: over 2M equal-width bins, ECE, ACE and MCE equal those of M bins
of confidence, unless some s lies on an edge (bins are right-closed, so a margin of 0 counts below 1/2 in the one form
and in the lowest bin of the other). An odd number of bins has one across 1/2 in which the two orders of a pair cancel:
its error is always 0, so pairs that the model hardly tells apart go unmeasured.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
BINNINGS = {"uniform": "of equal width", "quantile": "of equal mass"}
TEMPERATURES = (1e-4, 1e4)  # between which one is looked for, times the margins' root mean square
DIRECT = 256  # variables whose sum's distribution is convolved without Fourier transforms
STEPS = 100  # at most; halving the interval each time would take 44


@dataclass(frozen=True)
class Bin:
    """One bar of a reliability diagram: ``accuracy`` is ȳ_m, ``confidence`` c̄_m."""

    index: int
    count: int
    accuracy: float
    confidence: float


@dataclass(frozen=True)
class Calibration:
    """Calibration errors, and the non-empty bins; ``edges`` has one more entry than bins, ``correct`` holds y."""

    ece: float
    ace: float
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
    """Measure the calibration of confidences (module docstring).

    Args:
        margins: (N,) reward margins d of chosen over rejected; for a policy β·h.
        n_bins: M.
        lower_edge: where equal-width bins begin: 1/2, or 0 for comparison with other work.
        binning: ``uniform`` (equal width, right-closed, the first also left-closed) or ``quantile`` (equal mass).

    Raises:
        ValueError: for no margins, or fewer than one bin.
    """
    values = np.asarray(margins, dtype=np.float64)
    if not len(values):
        raise ValueError("calibration needs margins, got none")
    probability = sigmoid(values)
    confidence = np.maximum(probability, 1 - probability)
    return _calibration(confidence, (values > 0).astype(np.float64), n_bins, binning, lower_edge)


def probability_calibration(
    probabilities: ArrayLike, labels: ArrayLike, *, n_bins: int = 10, binning: str = "uniform"
) -> Calibration:
    """Measure the calibration of probabilities (module docstring; MORE R4); all errors are 0 where there are none.

    Args:
        probabilities: (N,) p in [0, 1].
        labels: (N,) y, 0 or 1.
        n_bins: M.
        binning: as for :func:`calibration`; equal-width bins divide [0, 1].

    Raises:
        ValueError: for fewer than one bin, or unequal lengths.
    """
    predicted, outcomes = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    if predicted.shape != outcomes.shape:
        raise ValueError(f"one label per probability is needed, got {outcomes.shape} and {predicted.shape}")
    return _calibration(predicted, outcomes, n_bins, binning, 0.0)


def ordered_pairs(margins: ArrayLike) -> tuple[Floats, Floats]:
    """Return each pair in both orders as a probability and a label: (s, 1) for all, then (1 - s, 0) for all."""
    values = np.asarray(margins, dtype=np.float64)
    labels = np.concatenate([np.ones(len(values)), np.zeros(len(values))])
    return sigmoid(np.concatenate([values, -values])), labels


def calibrated_ece(margins: ArrayLike, *, n_bins: int = 10) -> tuple[float, float]:
    """Return mean and standard deviation of the ECE that a calibrated model of the same confidences would show.

    An ECE measured on N pairs is above 0 even if every confidence c is true, because it averages absolute values of
    what then is noise. Let each pair's outcome be y ~ Bernoulli(c), c = σ(|d|), independently. With
    Z_m = Σ_{i in m} (y_i - c_i) over the pairs of bin m

        ECE = Σ_m |Z_m| / N,   E[ECE] = Σ_m E|Z_m| / N,   Var[ECE] = Σ_m (Σ_{i in m} c_i (1 - c_i) - (E|Z_m|)²) / N²

    and E|Z_m| is exact: Σ y_i of independent Bernoulli variables has the convolution of their distributions.

    Args:
        margins: (N,) reward margins d; their signs do not matter.
        n_bins: M bins of equal width on [0, 1], into which each pair enters in both orders: the ECE of
            :func:`probability_calibration` on :func:`ordered_pairs`, or of :func:`calibration` with M / 2 bins. A pair
            in the middle one of an odd M adds nothing, as it adds nothing there, nor does a margin of 0.

    Returns:
        Mean and standard deviation; 0 and 0 without pairs.

    Raises:
        ValueError: for fewer than one bin.
    """
    if n_bins < 1:
        raise ValueError(f"calibration needs at least one bin, got {n_bins}")
    values = np.asarray(margins, dtype=np.float64)
    confidence = sigmoid(np.abs(values))
    index = np.searchsorted(np.linspace(0, 1, n_bins + 1)[1:-1], confidence, side="left")
    mean = variance = 0.0
    for m in range(n_bins):
        inside = confidence[(index == m) & (2 * m + 1 != n_bins) & (confidence > 0.5)]
        if len(inside):
            sums = _sum_of_bernoullis(inside)
            deviation = float(sums @ np.abs(np.arange(len(sums)) - inside.sum()))
            mean += deviation
            variance += float((inside * (1 - inside)).sum()) - deviation**2
    return mean / max(len(values), 1), float(np.sqrt(max(variance, 0.0))) / max(len(values), 1)


def _sum_of_bernoullis(probabilities: Floats) -> Floats:
    """Return P(Σ y_i = k), k = 0 … n: by halves, whose distributions are convolved by Fourier transforms."""
    count = len(probabilities)
    if count == 1:
        return np.array([1 - probabilities[0], probabilities[0]])
    left, right = _sum_of_bernoullis(probabilities[: count // 2]), _sum_of_bernoullis(probabilities[count // 2 :])
    if count <= DIRECT:
        return np.convolve(left, right)
    product: Floats = np.fft.irfft(np.fft.rfft(left, count + 1) * np.fft.rfft(right, count + 1), count + 1)
    return product.clip(min=0)


def _calibration(predicted: Floats, outcomes: Floats, n_bins: int, binning: str, lower_edge: float) -> Calibration:
    if n_bins < 1:
        raise ValueError(f"calibration needs at least one bin, got {n_bins}")
    edges = np.linspace(lower_edge, 1.0, n_bins + 1)
    if binning == "quantile" and len(predicted):
        edges = np.quantile(predicted, np.linspace(0, 1, n_bins + 1))
    index = np.searchsorted(edges[1:-1], predicted, side="left")
    counts = np.bincount(index, minlength=n_bins)
    filled = np.flatnonzero(counts)
    accuracy, confidence = (
        np.bincount(index, weights=values, minlength=n_bins)[filled] / counts[filled]
        for values in (outcomes, predicted)
    )
    gaps = np.abs(accuracy - confidence)
    return Calibration(
        ece=float((gaps * counts[filled]).sum() / max(len(predicted), 1)),
        ace=float(gaps.mean()) if len(gaps) else 0.0,
        mce=float(gaps.max(initial=0.0)),
        bins=[
            Bin(int(m), int(counts[m]), float(right), float(sure))
            for m, right, sure in zip(filled, accuracy, confidence, strict=True)
        ],
        edges=edges.tolist(),
        confidence=predicted.tolist(),
        correct=outcomes.tolist(),
    )


def fit_temperature(margins: ArrayLike) -> float:
    r"""Return the temperature T that minimises the cross-entropy of σ(d / T) (Guo et al. 2017, arXiv 1706.04599).

    With x = d / T the mean cross-entropy f = mean of log(1 + e^-x), convex in 1/T, has one minimum in u = log T, where

        ∂f/∂u = mean of x σ(-x),   ∂²f/∂u² = mean of x² σ(x) σ(-x) - x σ(-x)

    so Newton's step is taken on u, and the interval that holds the minimum is halved where the step would leave it.

    Args:
        margins: (N,) reward margins d of chosen over rejected.

    Returns:
        T within TEMPERATURES times the margins' root mean square: the lower end if every pair is won (the sharper, the
        better), the upper end if margins are not positive on average; 1 if all margins are 0.

    Raises:
        ValueError: for no margins, or margins that are not finite.
    """
    values = np.asarray(margins, dtype=np.float64)
    if not len(values) or not np.isfinite(values).all():
        raise ValueError(f"a temperature needs finite margins, got {len(values)}")
    if not values.any():
        return 1.0
    scale = float(np.sqrt(np.mean(values**2)))
    values = values / scale
    low, high = (float(bound) for bound in np.log(TEMPERATURES))
    if _slope(values, low)[0] >= 0:
        return scale * TEMPERATURES[0]
    if _slope(values, high)[0] <= 0:
        return scale * TEMPERATURES[1]
    point = (low + high) / 2
    for _ in range(STEPS):
        slope, curvature = _slope(values, point)
        low, high = (low, point) if slope > 0 else (point, high)
        step = point - slope / curvature if curvature > 0 else low
        moved = step if low < step < high else (low + high) / 2
        if abs(moved - point) <= 1e-12:
            break
        point = moved
    return scale * float(np.exp(point))


def _slope(margins: Floats, log_temperature: float) -> tuple[float, float]:
    x = margins / np.exp(log_temperature)
    wrong = sigmoid(-x)
    return float((x * wrong).mean()), float((x * x * wrong * (1 - wrong) - x * wrong).mean())


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
