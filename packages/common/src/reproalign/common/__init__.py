"""The shared core: data, log-probabilities, trainers, launch, evaluation and run records."""

from __future__ import annotations

from typing import TYPE_CHECKING

from reproalign.common.lazy import exports

if TYPE_CHECKING:
    from reproalign.common.errors import UserError
    from reproalign.common.training.completions import CompletionTrainer
    from reproalign.common.training.examples import ExampleTrainer
    from reproalign.common.training.objective import (
        Examples,
        ExampleScores,
        Needs,
        Objective,
        Pairs,
        PairScores,
        Responses,
    )
    from reproalign.common.training.pairs import PairTrainer
    from reproalign.common.training.reference import (
        AdapterDisabledReference,
        CachedReference,
        FrozenReference,
        Reference,
    )

__all__ = [
    "AdapterDisabledReference",
    "CachedReference",
    "CompletionTrainer",
    "ExampleScores",
    "ExampleTrainer",
    "Examples",
    "FrozenReference",
    "Needs",
    "Objective",
    "PairScores",
    "PairTrainer",
    "Pairs",
    "Reference",
    "Responses",
    "UserError",
]

__getattr__ = exports(
    __name__,
    {
        "errors": "UserError",
        "training.completions": "CompletionTrainer",
        "training.examples": "ExampleTrainer",
        "training.objective": "Examples ExampleScores Needs Objective Pairs PairScores Responses",
        "training.pairs": "PairTrainer",
        "training.reference": "AdapterDisabledReference CachedReference FrozenReference Reference",
    },
)
