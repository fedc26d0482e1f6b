"""MORE: one reward model for diverse preferences (arXiv 2312.07401)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reproalign.common.lazy import exports

if TYPE_CHECKING:
    from reproalign.more.balance import normalize_gradients
    from reproalign.more.loss import domain_loss, ranking_loss
    from reproalign.more.metrics import preference_metrics
    from reproalign.more.min_norm import frank_wolfe, min_norm_point, optimality_gap

__all__ = [
    "domain_loss",
    "frank_wolfe",
    "min_norm_point",
    "normalize_gradients",
    "optimality_gap",
    "preference_metrics",
    "ranking_loss",
]

__getattr__ = exports(
    __name__,
    {
        "balance": "normalize_gradients",
        "loss": "domain_loss ranking_loss",
        "metrics": "preference_metrics",
        "min_norm": "frank_wolfe min_norm_point optimality_gap",
    },
)
