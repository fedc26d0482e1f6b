"""What the objectives of this paper's experiments say beside their equation: which rows, and what the release does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from reproalign.common.lazy import torch
from reproalign.common.training.objective import Objective, Responses


@dataclass(frozen=True)
class RadpoObjective(Objective):
    """An objective of ``radpo train``.

    Attributes:
        kind: of rows, see :data:`reproalign.radpo.rows.KINDS`.
        accumulates: how the release's trainer goes: sums of the losses of a step's micro-batches, under a cosine. If
            false, as its PPO's: a step on the mean of every micro-batch, at a constant rate (ERRATA Q4, Q5, Q18).
        keeps_dropout: the policy trains with its dropout under ``paper`` too.
    """

    kind: ClassVar[str]
    accumulates: ClassVar[bool] = True
    keeps_dropout: ClassVar[bool] = False

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """Tokens that the tokenizer is taught: what chosen and rejected responses begin with."""
        return ()

    @property
    def reward_scale(self) -> float:
        """What log-ratios of held-out pairs are multiplied with, so that runs compare: β, or 1 without a reference."""
        return float(getattr(self, "beta", 1.0))

    def with_term(self, responses: Responses) -> torch.Tensor | None:
        """Return u + T of responses, where the objective has a token-level term T."""
        return None
