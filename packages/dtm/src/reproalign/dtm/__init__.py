"""Disperse-Then-Merge (arXiv 2405.13432): instruction data in clusters, a LoRA sub-model on each, merged."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reproalign.common.lazy import exports

if TYPE_CHECKING:
    from reproalign.dtm.disperse.balanced import Assignment, balanced_assignment
    from reproalign.dtm.disperse.random_split import equal_labels, random_labels
    from reproalign.dtm.merge.released import basic_merging

__all__ = [
    "Assignment",
    "balanced_assignment",
    "basic_merging",
    "equal_labels",
    "random_labels",
]

__getattr__ = exports(
    __name__,
    {
        "disperse.balanced": "Assignment balanced_assignment",
        "disperse.random_split": "equal_labels random_labels",
        "merge.released": "basic_merging",
    },
)
