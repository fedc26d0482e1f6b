"""The ``more-rm`` command: verbs and what they stand for."""

from __future__ import annotations

from collections.abc import Sequence

from reproalign.common.cli import App, run
from reproalign.common.invocation import Verb
from reproalign.common.verbs import EVALUATE_SUITE, PERPLEXITY, RAFT, REJECTION_SAMPLING

APP = App(
    command="more-rm",
    package="reproalign.more",
    distribution="reproalign-more",
    title="MORE: one reward model for diverse preferences (arXiv 2312.07401)",
    verbs=(
        Verb(
            "train",
            "train a reward model on several domains (MORE; method=multitask for the baseline)",
            "train",
            "reproalign.more.config:TrainConfig",
            "reproalign.more.train:train",
            launchable=True,
        ),
        Verb(
            "evaluate",
            "measure accuracy and calibration per domain; or compare responses by rewards and by a judge",
            "evaluate",
            "reproalign.more.config:EvaluateConfig",
            "reproalign.more.evaluate:evaluate",
        ),
        EVALUATE_SUITE,
        *REJECTION_SAMPLING,
        RAFT,
        PERPLEXITY,
    ),
    more=(
        (
            "plot",
            "draw accuracy and calibration by domain of several runs, averaged over seeds",
            "reproalign.more.plot:plot_command",
        ),
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out ``more-rm …``."""
    return run(APP, argv)
