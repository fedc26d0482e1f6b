"""DPO, and conservative DPO for labels that may be wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from reproalign.common.lazy import torch
from reproalign.common.options import option
from reproalign.common.training.objective import Needs, Pairs, PairScores
from reproalign.radpo.objectives.base import RadpoObjective

__all__ = ["CDPO", "DPO"]


def _smoothed(batch: Pairs, beta: float, epsilon: float) -> PairScores:
    logsigmoid = torch.nn.functional.logsigmoid
    chosen, rejected = batch.chosen.log_ratios, batch.rejected.log_ratios
    z = beta * (chosen - rejected)
    losses = -(1 - epsilon) * logsigmoid(z) - epsilon * logsigmoid(-z)
    return PairScores(losses, (beta * chosen).detach(), (beta * rejected).detach())


@dataclass(frozen=True)
class DPO(RadpoObjective):
    """Direct preference optimisation (Rafailov et al., 2023): -log σ(β (u_w - u_l)) (R8, ε = 0); rewards β u."""

    name: ClassVar[str] = "dpo"
    kind: ClassVar[str] = "paired"
    needs = Needs("pairs")

    beta: float = option(0.1, above=0, help="temperature: how strongly the policy is held to the reference")

    def __call__(self, batch: Pairs) -> PairScores:
        """Return (R8) with ε = 0."""
        return _smoothed(batch, self.beta, 0.0)


@dataclass(frozen=True)
class CDPO(DPO):
    """Conservative DPO, ε the probability of a flipped label: -(1-ε) log σ(z) - ε log σ(-z), z = β (u_w - u_l) (R8)."""

    name: ClassVar[str] = "cdpo"

    epsilon: float = option(0.2, at_least=0, below=0.5, help="probability of a flipped label")

    def __call__(self, batch: Pairs) -> PairScores:
        """Return (R8)."""
        return _smoothed(batch, self.beta, self.epsilon)
