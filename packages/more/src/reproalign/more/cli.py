"""The ``more-rm`` command: verbs and what they stand for."""

from __future__ import annotations

from collections.abc import Sequence

from reproalign.common.command.app import App, run
from reproalign.common.invocation import Verb
from reproalign.common.verbs import EVALUATE_SUITE, PERPLEXITY, RAFT, REJECTION_SAMPLING

AVERAGE = Verb(
    "average",
    "average the rewards of several reward models on the same held-out items (the baseline Averaging)",
    "average",
    "reproalign.more.config:AverageConfig",
    "reproalign.more.average:average",
)
STUDY = (
    Verb(
        "study tables",
        "make the paper's tables of these runs, beside the printed numbers",
        "study_tables",
        "reproalign.more.study.config:TablesConfig",
        "reproalign.more.study.tables:tables",
    ),
    Verb(
        "study claims",
        "check the claims C1-C18 of the paper on its own numbers, and on these runs",
        "study_claims",
        "reproalign.more.study.config:ClaimsConfig",
        "reproalign.more.study.claims:claims",
    ),
    Verb(
        "study figures",
        "draw the paper's figures of these runs",
        "study_figures",
        "reproalign.more.study.config:FiguresConfig",
        "reproalign.more.study.figures:figures",
    ),
)

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
            check="reproalign.more.train:check_options",
            previewed=True,
        ),
        Verb(
            "evaluate",
            "measure accuracy and calibration per domain; with responses=[A,B]: compare responses",
            "evaluate",
            "reproalign.more.config:EvaluateConfig",
            "reproalign.more.evaluate:evaluate",
        ),
        Verb(
            "evaluate",
            "compare responses to the same prompts by rewards and by a judge",
            "compare",
            "reproalign.more.config:CompareConfig",
            "reproalign.more.compare:compare_responses",
            when="responses",
        ),
        EVALUATE_SUITE,
        *REJECTION_SAMPLING,
        RAFT,
        PERPLEXITY,
        AVERAGE,
        *STUDY,
    ),
    renamed={
        f"data.{name}": "no domain is trained on here, and held-out items are not resampled; leave it out"
        for name in ("train_domains", "task_num", "resampling", "resampling_size")
    },
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
