"""The ``toy`` command."""

from __future__ import annotations

from collections.abc import Sequence

from reproalign.common.command.app import App, run
from reproalign.common.invocation import Verb

TRAIN = Verb(
    *("train", "train a policy on preference pairs", "train", "toy.config:TrainConfig", "toy.train:train"),
    launchable=True,
    previewed=True,
)
APP = App("toy", "toy", "toy", "A toy of a paper", (TRAIN,))


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out ``toy …``."""
    return run(APP, argv)
