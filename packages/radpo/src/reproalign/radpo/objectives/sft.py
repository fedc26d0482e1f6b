"""Supervised fine-tuning on the preferred response, and CSFT on both, told apart by control tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from reproalign.common.options import option
from reproalign.common.training.objective import ExampleScores, Needs, Responses
from reproalign.radpo.objectives.base import RadpoObjective

__all__ = ["CSFT", "SFT"]


@dataclass(frozen=True)
class SFT(RadpoObjective):
    """Supervised fine-tuning: -log π(y|x), a sum over tokens and not their mean (R7); rewards log π(y|x)."""

    name: ClassVar[str] = "sft"
    kind: ClassVar[str] = "completions"
    keeps_dropout: ClassVar[bool] = True
    needs = Needs("completions", reference="none")

    def __call__(self, batch: Responses) -> ExampleScores:
        """Return (R7)."""
        return ExampleScores(-batch.logps, batch.logps.detach())


@dataclass(frozen=True)
class CSFT(SFT):
    """Conditional SFT (Korbak et al., 2023): (R7) on both responses, each after a token that says which it is."""

    name: ClassVar[str] = "csft"
    kind: ClassVar[str] = "controlled"

    chosen_control_token: str = option("<|good|>", help="what the preferred responses begin with")
    rejected_control_token: str = option("<|bad|>", help="what the rejected responses begin with")

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """Both."""
        return self.chosen_control_token, self.rejected_control_token
