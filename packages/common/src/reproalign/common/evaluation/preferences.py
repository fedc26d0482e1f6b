"""The measures of a model on held-out preference pairs."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from reproalign.common.evaluation.calibration import calibration, soft_target_errors


def preference_metrics(
    chosen_rewards: ArrayLike, rejected_rewards: ArrayLike, targets: ArrayLike | None = None, *, n_bins: int = 10
) -> dict[str, float]:
    """Measure how rewards order and size the margins of pairs.

    Args:
        chosen_rewards: (N,) r(x, y_w), or β (log π - log π_ref) of a policy.
        rejected_rewards: (N,) likewise of y_l.
        targets: (N,) target probabilities q, if there are soft ones.
        n_bins: of the calibration.

    Returns:
        ``accuracy`` (share of pairs with a margin above 0, so that ties are wrong), ``margin`` (mean) and
        ``margin_std``, ``ece`` and ``mce``; with targets ``soft_kl`` and ``brier``.
    """
    margins = np.asarray(chosen_rewards, dtype=np.float64) - np.asarray(rejected_rewards, dtype=np.float64)
    calibrated = calibration(margins, n_bins=n_bins)
    metrics = {
        "accuracy": float(np.mean(margins > 0)),
        "margin": float(margins.mean()),
        "margin_std": float(margins.std()),
        "ece": calibrated.ece,
        "mce": calibrated.mce,
    }
    return metrics | ({} if targets is None else soft_target_errors(margins, targets))
