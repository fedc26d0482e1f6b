"""Rejection sampling as four verbs: sample responses, score them, select the best, fine-tune on these."""

from __future__ import annotations

from reproalign.common.invocation import Verb

REJECTION_SAMPLING = (
    Verb(
        "sample",
        "sample n responses of a language model to each prompt",
        "sample",
        "reproalign.common.verbs.config:SampleConfig",
        "reproalign.common.verbs.sample:sample",
        launchable=True,
    ),
    Verb(
        "score",
        "score sampled responses with a reward model",
        "score",
        "reproalign.common.verbs.config:ScoreConfig",
        "reproalign.common.verbs.score:score",
    ),
    Verb(
        "select",
        "keep the best response to each prompt, or the best and the worst",
        "select",
        "reproalign.common.verbs.config:SelectConfig",
        "reproalign.common.verbs.select:select",
    ),
    Verb(
        "align",
        "fine-tune a language model on the selected responses",
        "align",
        "reproalign.common.verbs.config:AlignConfig",
        "reproalign.common.verbs.align:align",
        launchable=True,
    ),
)
