"""Merging: equations on tensors (``methods``), a streaming engine, blocks, adapters; the verb is ``verbs/merge.py``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reproalign.common.lazy import exports

if TYPE_CHECKING:
    from reproalign.common.merging.methods import (
        dare_linear,
        disjoint_mean,
        drop_and_rescale,
        elect_signs,
        fisher,
        linear,
        regmean,
        slerp_weights,
        task_arithmetic_weights,
        ties,
        trim,
    )

__all__ = [
    "dare_linear",
    "disjoint_mean",
    "drop_and_rescale",
    "elect_signs",
    "fisher",
    "linear",
    "regmean",
    "slerp_weights",
    "task_arithmetic_weights",
    "ties",
    "trim",
]

__getattr__ = exports(
    __name__,
    {
        "methods": "dare_linear disjoint_mean drop_and_rescale elect_signs fisher linear regmean slerp_weights "
        "task_arithmetic_weights ties trim",
    },
)
