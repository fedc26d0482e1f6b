"""What the paper and its release do differently, as one table of rules that a run chooses once.

Numbers in brackets are rows of ``ERRATA.md``; what the release computes is in
:mod:`reproalign.dtm.disperse.released_kmeans`, :mod:`reproalign.dtm.train.order` and
:mod:`reproalign.dtm.merge.released`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reproalign.common.options.shared import by_variant


@dataclass(frozen=True)
class DtmRules:
    """One variant of Disperse-Then-Merge.

    Attributes:
        method: what null stands for in ``method`` of a dispersal (Q1).
        on_error: the same of ``data.on_error`` (Q6).
        algorithm: the same of ``kmeans.algorithm`` (Q18).
        unchecked: rows are the release's file byte for byte, with ``{}`` for those that do not fit (Q6).
        label_files: the labels of k-means also stand by the release's names (Q21).
        tokens: what null stands for in ``tokens.*`` (Q4, Q5, L6).
        normalisation: the same of ``normalisation`` (Q30).
        unseeded_order: rows come in an order that no seed changes, unless ``trainer.train_sampling_strategy`` is set
            (M1).
        batch_measures: held-out rows are measured by batch, in their order, padding counted (Q11).
        merge_methods: that there are; None: all.
        flat_factors: merges are of adapters, whose factors are read as one flat vector each (Q3, Q23, Q31).
    """

    method: str
    on_error: str
    algorithm: str
    unchecked: bool
    label_files: bool
    tokens: Mapping[str, Any]
    normalisation: str
    unseeded_order: bool
    batch_measures: bool
    merge_methods: tuple[str, ...] | None
    flat_factors: bool


PAPER = DtmRules(
    method="random_equal",
    on_error="skip",
    algorithm="lloyd",
    unchecked=False,
    label_files=False,
    tokens={"boundary": "exact", "append_eos": True, "drop_unsupervised": True},
    normalisation="token_mean",
    unseeded_order=False,
    batch_measures=False,
    merge_methods=None,
    flat_factors=False,
)
RELEASED = DtmRules(
    method="random",
    on_error="raise",
    algorithm="released",
    unchecked=True,
    label_files=True,
    tokens={"boundary": "released", "append_eos": False, "drop_unsupervised": False},
    normalisation="micro_batch_mean",
    unseeded_order=True,
    batch_measures=True,
    merge_methods=("average", "task_arithmetic", "ties", "dare"),
    flat_factors=True,
)


def rules_of(variant: str) -> DtmRules:
    """Return the rules of a variant, see :func:`~reproalign.common.options.shared.by_variant`."""
    return by_variant(variant, paper=PAPER, released=RELEASED)
