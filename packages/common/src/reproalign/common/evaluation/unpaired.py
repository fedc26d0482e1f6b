"""The measures of a model on held-out unpaired feedback, where no single example can be said to be right or wrong."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def unpaired_metrics(rewards: ArrayLike, desirable: ArrayLike) -> dict[str, float]:
    """Measure how well rewards separate desirable from undesirable examples.

    Args:
        rewards: (N,) of the examples.
        desirable: (N,) their labels.

    Returns:
        ``rewards/desirable`` and ``rewards/undesirable`` (means), ``rewards/margins`` (their difference) and ``auc``
        (:func:`roc_auc`); what an absent class leaves undefined is absent.
    """
    values, labels = np.asarray(rewards, dtype=np.float64), np.asarray(desirable).astype(bool)
    classes = {"desirable": values[labels], "undesirable": values[~labels]}
    metrics = {f"rewards/{name}": float(found.mean()) for name, found in classes.items() if len(found)}
    return metrics | margin(metrics) | ({"auc": roc_auc(values, labels)} if len(metrics) == 2 else {})


def margin(means: dict[str, float]) -> dict[str, float]:
    """Return ``rewards/margins``, the difference of the classes' mean rewards, if both classes were met."""
    if not {"rewards/desirable", "rewards/undesirable"} <= means.keys():
        return {}
    return {"rewards/margins": means["rewards/desirable"] - means["rewards/undesirable"]}


def roc_auc(scores: ArrayLike, positive: ArrayLike) -> float:
    r"""Return the area under the ROC curve: the share of (positive, negative) couples in which the positive one scores
    higher, ties counting half. With R the sum of the positives' ranks (ties share their mean rank)

        AUC = (R - n₊ (n₊ + 1) / 2) / (n₊ n₋)

    Raises:
        ValueError: if one class is absent.
    """
    labels = np.asarray(positive).astype(bool)
    positives, negatives = int(labels.sum()), int((~labels).sum())
    if not positives or not negatives:
        raise ValueError("the area under the ROC curve needs positive and negative examples")
    _, place, counts = np.unique(np.asarray(scores), return_inverse=True, return_counts=True)
    ranks = (counts.cumsum() - (counts - 1) / 2)[place]
    return float((ranks[labels].sum() - positives * (positives + 1) / 2) / (positives * negatives))
