"""One trainer for every shape of rows."""

from __future__ import annotations

from reproalign.common.training.completions import CompletionTrainer
from reproalign.common.training.examples import ExampleTrainer
from reproalign.common.training.pairs import PairTrainer
from reproalign.common.training.policy import PolicyTrainer

TRAINERS: dict[str, type[PolicyTrainer]] = {
    "pairs": PairTrainer,
    "examples": ExampleTrainer,
    "completions": CompletionTrainer,
}
