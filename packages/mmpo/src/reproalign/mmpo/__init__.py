"""Margin Matching Preference Optimization (arXiv 2410.03145): DPO and reward models on soft Bradley-Terry targets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reproalign.common.lazy import exports

if TYPE_CHECKING:
    from reproalign.mmpo.objective import IPO, MMPO, Hinge, KTOPair, MMPOReward
    from reproalign.mmpo.target import target_probabilities

__all__ = [
    "IPO",
    "MMPO",
    "Hinge",
    "KTOPair",
    "MMPOReward",
    "target_probabilities",
]

__getattr__ = exports(
    __name__,
    {
        "objective": "IPO MMPO Hinge KTOPair MMPOReward",
        "target": "target_probabilities",
    },
)
