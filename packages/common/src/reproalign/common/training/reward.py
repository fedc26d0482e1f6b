"""Training a scalar reward model on preference pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from reproalign.common.files import write_json
from reproalign.common.reward.rules import NOTE, RewardRules
from reproalign.common.training.objective import PairScores
from reproalign.common.training.pairs import ScoredPairsTrainer


@dataclass(frozen=True)
class RewardPairs:
    """Rewards of the two sides of pairs.

    Attributes:
        chosen: r(x, w).
        rejected: r(x, l).
        p_chosen: q, the target probability that w is preferred; None: 1.
        margin: by how much w is better, where the rows say so.
    """

    chosen: Float[Tensor, " pairs"]
    rejected: Float[Tensor, " pairs"]
    p_chosen: Float[Tensor, " pairs"] | None = None
    margin: Float[Tensor, " pairs"] | None = None


class PairedRewardTrainer(ScoredPairsTrainer):
    """Scores chosen and rejected dialogues in one forward of a reward model.

    The model answers ``rewards=True`` (:func:`reproalign.common.reward.model.install_rewards`).

    Args:
        objective: the losses of pairs of rewards.
        rules: how a text becomes what the model reads; written as ``reward.json`` into every checkpoint, each of which
            is a reward model to be scored. None: not written.
        **kwargs: passed on.
    """

    def __init__(
        self, *, objective: Callable[[RewardPairs], Tensor], rules: RewardRules | None = None, **kwargs: Any
    ) -> None:
        self.objective: Callable[[RewardPairs], Tensor] = objective
        self.rules = rules
        super().__init__(**kwargs)

    def save_state(self, checkpoint: Path) -> None:
        """Write ``reward.json``."""
        super().save_state(checkpoint)
        if self.rules is not None and self.is_world_process_zero():
            write_json(checkpoint / NOTE, self.rules.note())

    def score(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[PairScores, None]:
        """Compute the rewards of the micro-batch and hand them to the objective."""
        output = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], rewards=True)
        chosen, rejected = output["rewards"].chunk(2)
        losses = self.objective(RewardPairs(chosen, rejected, inputs.get("p_chosen"), inputs.get("margin")))
        return PairScores(losses, chosen, rejected), None
