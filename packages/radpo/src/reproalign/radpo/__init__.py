"""Risk-aware Direct Preference Optimization (arXiv 2505.20359) and the losses that it is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reproalign.common.lazy import exports

if TYPE_CHECKING:
    from reproalign.radpo.objectives.dpo import CDPO, DPO
    from reproalign.radpo.objectives.kto import KTO, KTOZero
    from reproalign.radpo.objectives.ppo import PPO
    from reproalign.radpo.objectives.ra_dpo import RaDPO
    from reproalign.radpo.objectives.sft import CSFT, SFT
    from reproalign.radpo.objectives.slic import SLiC
    from reproalign.radpo.objectives.tdpo import TDPO
    from reproalign.radpo.risk import (
        CVaR,
        CVaRComplement,
        Entropic,
        EntropicScaled,
        Expectation,
        MeanSemideviation,
        ReleasedTail,
        RiskMeasure,
    )

__all__ = [
    "CDPO",
    "CSFT",
    "DPO",
    "KTO",
    "PPO",
    "SFT",
    "TDPO",
    "CVaR",
    "CVaRComplement",
    "Entropic",
    "EntropicScaled",
    "Expectation",
    "KTOZero",
    "MeanSemideviation",
    "RaDPO",
    "ReleasedTail",
    "RiskMeasure",
    "SLiC",
]

__getattr__ = exports(
    __name__,
    {
        "objectives.dpo": "CDPO DPO",
        "objectives.kto": "KTO KTOZero",
        "objectives.ppo": "PPO",
        "objectives.ra_dpo": "RaDPO",
        "objectives.sft": "CSFT SFT",
        "objectives.slic": "SLiC",
        "objectives.tdpo": "TDPO",
        "risk": "CVaR CVaRComplement Entropic EntropicScaled Expectation MeanSemideviation ReleasedTail RiskMeasure",
    },
)
