"""The ``more-rm`` command: verbs and what they stand for."""

from __future__ import annotations

from collections.abc import Sequence

from reproalign.common.cli import App, run
from reproalign.common.invocation import Verb

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
        Verb(
            "sample",
            "sample n responses of a language model to each prompt",
            "sample",
            "reproalign.more.config:SampleConfig",
            "reproalign.more.sample:sample",
            launchable=True,
        ),
        Verb(
            "score",
            "score sampled responses with a reward model",
            "score",
            "reproalign.more.config:ScoreConfig",
            "reproalign.more.score:score",
        ),
        Verb(
            "select",
            "keep the best response to each prompt, or the best and the worst",
            "select",
            "reproalign.more.config:SelectConfig",
            "reproalign.more.select:select",
        ),
        Verb(
            "align",
            "fine-tune a language model on the selected responses",
            "align",
            "reproalign.more.config:AlignConfig",
            "reproalign.more.align:align",
            launchable=True,
        ),
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
