r"""Accuracy and calibration of rewards on one domain's held-out items, and temperature scaling as a baseline.

Of an item with rewards z and scores s (s < 0: not there) every two responses with s_i > s_j make a pair with margin
d = z_i - z_j. The pairs of all items give

    accuracy = share of the pairs with d > 0
    loss = mean of -log σ(d)                                            the ranking loss over *all* pairs at once
    ECE, ACE, MCE of p = σ(z_i - z_j) against 1[s_i > s_j], each pair in both orders: ``common.evaluation.calibration``
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from reproalign.common.errors import UserError, choose, counted
from reproalign.common.evaluation.calibration import (
    BINNINGS,
    calibrated_ece,
    fit_temperature,
    ordered_pairs,
    probability_calibration,
)
from reproalign.more.config import TIES

Floats = NDArray[np.float64]
BINS = (5, 10, 20)  # as the release has them; the paper's tables have 10
HH = ("helpful", "harmless")  # whose arithmetic mean the paper calls H&H


@dataclass(frozen=True)
class DomainRewards:
    """Rewards of a domain's held-out items and their scores, both (items, responses); a score < 0: not there."""

    rewards: NDArray[np.floating]
    scores: NDArray[np.floating]

    @property
    def present(self) -> Floats:
        """The rewards of the responses that are there, (responses,)."""
        return np.asarray(self.rewards, dtype=np.float64)[np.asarray(self.scores) >= 0]


def pair_margins(rewards: ArrayLike, scores: ArrayLike) -> tuple[Floats, NDArray[np.int64]]:
    """Return the reward of the better response minus that of the worse for every untied pair, and the pair's item.

    Args:
        rewards: (items, responses) z; anything where a response is not there.
        scores: (items, responses) s, higher is better; negative where a response is not there.

    Returns:
        (pairs,) margins d and (pairs,) indices of items.

    Raises:
        ValueError: for shapes that do not match.
        UserError: if a reward is not finite.
    """
    z, s = np.asarray(rewards, dtype=np.float64), np.asarray(scores)
    if z.ndim != 2 or z.shape != s.shape:
        raise ValueError(f"rewards and scores of shape (items, responses) are needed, got {z.shape} and {s.shape}")
    known = s >= 0
    if not np.isfinite(z[known]).all():
        raise UserError(
            "rewards hold NaN or infinity: the training diverged or the precision is too low; lower "
            "trainer.learning_rate, or use trainer.bf16=true in place of fp16"
        )
    item, better, worse = np.nonzero(known[:, :, None] & known[:, None, :] & (s[:, :, None] > s[:, None, :]))
    return z[item, better] - z[item, worse], item


def domain_metrics(
    rewards: ArrayLike, scores: ArrayLike, *, ties: str = "wrong", bins: Sequence[int] = BINS
) -> dict[str, float]:
    """Return accuracy, loss, ECE (R4), ACE and MCE of one domain (module docstring).

    Args:
        rewards: as :func:`pair_margins` takes them.
        scores: likewise.
        ties: how pairs of equal rewards count in the accuracy. ``wrong`` (paper, all of these packages): as lost;
            ``half`` (the release, which counts one of their two orders as right): as 1/2. The metric ``ties`` is their
            share, so that either accuracy follows from the other.
        bins: numbers of bins M on [0, 1].

    Returns:
        ``accuracy``, ``loss`` (nats), ``ties``, ``pairs`` and ``items`` (numbers), ``reward_mean`` and ``reward_std``
        over responses; for every M ``ece_M``, ``ace_M``, ``mce_M`` over bins of equal width, and ``quantile_ece_M`` …
        over bins of equal mass; ``ece_M_calibrated`` and ``ece_M_calibrated_sd``: mean and standard deviation of the
        ECE that a perfectly calibrated model of the same confidences would show
        (:func:`reproalign.common.evaluation.calibration.calibrated_ece`). Without pairs the accuracy is NaN, loss and
        errors are 0.

    Raises:
        ValueError: as :func:`pair_margins`.
        UserError: likewise.
    """
    choose("ties", ties, TIES)
    margins, _ = pair_margins(rewards, scores)
    present = DomainRewards(np.asarray(rewards), np.asarray(scores)).present
    count = len(margins)
    tied = float((margins == 0).mean()) if count else 0.0
    right = float((margins > 0).mean()) if count else float("nan")
    metrics = {
        "accuracy": right + tied / 2 if ties == "half" else right,
        "loss": float(np.logaddexp(0, -margins).mean()) if count else 0.0,
        "ties": tied,
        "pairs": float(count),
        "items": float(len(np.asarray(scores))),
        "reward_mean": float(present.mean()) if len(present) else 0.0,
        "reward_std": float(present.std()) if len(present) else 0.0,
    }
    probabilities, labels = ordered_pairs(margins)
    for binning in BINNINGS:
        prefix = "" if binning == "uniform" else f"{binning}_"
        for n_bins in bins:
            errors = probability_calibration(probabilities, labels, n_bins=n_bins, binning=binning)
            metrics |= {f"{prefix}{name}_{n_bins}": getattr(errors, name) for name in ("ece", "ace", "mce")}
    for n_bins in bins:
        expected, spread = calibrated_ece(margins, n_bins=n_bins)
        metrics |= {f"ece_{n_bins}_calibrated": expected, f"ece_{n_bins}_calibrated_sd": spread}
    return metrics


def mean_of_domains(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Average every metric over the domains, each counting the same.

    Standard deviations (``…_sd``) of n independent domains are those of the mean: √(Σ sd²) / n.
    """
    found = {}
    for name in next(iter(metrics.values())):
        values = [of[name] for of in metrics.values()]
        found[name] = float(np.linalg.norm(values) / len(values) if name.endswith("_sd") else np.mean(values))
    return found


def named_means(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Return ``mean``, over all domains, and where there are both ``mean_hh``, over helpful and harmless alone."""
    means = {"mean": mean_of_domains(metrics)}
    if metrics.keys() >= set(HH):
        means["mean_hh"] = mean_of_domains({name: metrics[name] for name in HH})
    return means


def temperature_metrics(
    domains: Mapping[str, DomainRewards],
    *,
    per_domain: bool,
    ties: str = "wrong",
    bins: Sequence[int] = BINS,
    seed: int = 42,
) -> dict[str, dict[str, float]]:
    """Measure every domain once more with its rewards divided by a temperature that was fitted on other items.

    Temperature scaling (Guo et al. 2017) repairs calibration after training and leaves the accuracy as it is. Each
    domain's items are dealt into two halves; T minimises the cross-entropy of one half's pairs, and divides the other
    half's rewards, both ways. So every item is measured, under a T that has not seen it.

    Args:
        domains: rewards and scores by domain.
        per_domain: fit one T to each domain; otherwise one to the pairs of all.
        ties: as for :func:`domain_metrics`.
        bins: likewise.
        seed: of the dealing.

    Returns:
        domain -> the metrics of :func:`domain_metrics`, and ``temperature``: T fitted on all items, the one to use.

    Raises:
        UserError: if a domain has fewer than two items with pairs.
    """
    dealt, margins, halves = {}, {}, {}
    for name, measured in domains.items():
        margins[name], item = pair_margins(measured.rewards, measured.scores)
        dealt[name] = _deal(len(measured.scores), np.unique(item), seed, name)
        halves[name] = dealt[name][item]
    results = {}
    for group in [[name] for name in domains] if per_domain else [list(domains)]:
        pooled, half = (np.concatenate([values[name] for name in group]) for values in (margins, halves))
        divisors = np.array([fit_temperature(pooled[half == 1]), fit_temperature(pooled[half == 0])])
        for name in group:
            scaled = np.asarray(domains[name].rewards, dtype=np.float64) / divisors[dealt[name]][:, None]
            metrics = domain_metrics(scaled, domains[name].scores, ties=ties, bins=bins)
            results[name] = {**metrics, "temperature": fit_temperature(pooled)}
    return results


def _deal(items: int, paired: NDArray[np.int64], seed: int, name: str) -> NDArray[np.int64]:
    """Return each item's half, 0 or 1; items with pairs are dealt evenly."""
    if len(paired) < 2:
        raise UserError(
            f"domain {name} has {counted(len(paired), 'item')} with pairs; temperature scaling needs two, leave "
            "temperature off"
        )
    half = np.zeros(items, dtype=np.int64)
    half[np.random.default_rng(seed).permutation(paired)] = np.arange(len(paired)) % 2
    return half
