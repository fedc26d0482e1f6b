"""Mitigating the Alignment Tax of RLHF (arXiv 2309.06256): average the weights before and after, in learned ratios."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reproalign.common.lazy import exports

if TYPE_CHECKING:
    from reproalign.ama.align.objective import DPO, BradleyTerry
    from reproalign.ama.align.online.objective import PPOObjective
    from reproalign.ama.average.engine import moving_average_weights
    from reproalign.ama.ratios import constraint_weights, normalized, reachable

__all__ = [
    "DPO",
    "BradleyTerry",
    "PPOObjective",
    "constraint_weights",
    "moving_average_weights",
    "normalized",
    "reachable",
]

__getattr__ = exports(
    __name__,
    {
        "align.objective": "DPO BradleyTerry",
        "align.online.objective": "PPOObjective",
        "average.engine": "moving_average_weights",
        "ratios": "constraint_weights normalized reachable",
    },
)
