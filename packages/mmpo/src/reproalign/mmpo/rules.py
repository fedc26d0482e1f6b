"""What the paper and its release do differently, as one table of rules that a run chooses once.

Names in brackets are rows of ``ERRATA.md``; the release's own functions are in :mod:`reproalign.mmpo.released`. How
texts become tokens does not hang on the variant: recipes set ``text.special_tokens`` and ``text.boundary``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from reproalign.common.options.shared import by_variant


@dataclass(frozen=True)
class MmpoRules:
    """One variant of MMPO.

    Attributes:
        batch_targets: a reward model's pairs all meet every target of their micro-batch (Q5).
        smooths_targets: label smoothing acts on targets that are given, not only where there are none (Q8).
        dropout: that acts in a policy where ``model.dropout`` is null (Q34a).
        gemma_numerics: what null stands for in ``model.gemma_numerics`` of a Gemma 1 (M7).
        release_epochs: epochs and their steps are those of transformers 4.38.1 (M5).
        release_names: loggers get the release's name of the run (Q21).
        rounded_ties: a margin that float64 rounds away in σ is a tie, and counts as lost.
    """

    batch_targets: bool
    smooths_targets: bool
    dropout: Literal["all", "adapters", "none"]
    gemma_numerics: str | None
    release_epochs: bool
    release_names: bool
    rounded_ties: bool


PAPER = MmpoRules(
    batch_targets=False,
    smooths_targets=True,
    dropout="adapters",
    gemma_numerics=None,
    release_epochs=False,
    release_names=False,
    rounded_ties=False,
)
RELEASED = MmpoRules(
    batch_targets=True,
    smooths_targets=False,
    dropout="none",  # TRL 0.7.7 turns off the adapters' as well
    gemma_numerics="transformers-4.38",
    release_epochs=True,
    release_names=True,
    rounded_ties=True,
)


def rules_of(variant: str) -> MmpoRules:
    """Return the rules of a variant, see :func:`~reproalign.common.options.shared.by_variant`."""
    return by_variant(variant, paper=PAPER, released=RELEASED)
