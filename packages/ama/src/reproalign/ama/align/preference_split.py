"""Which rows are trained on, which are held out, and whose prompts the policy is trained on and evaluated with."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from reproalign.ama.align.preference_rows import PreferenceExample
from reproalign.ama.align.raft_config import PreferenceDataConfig
from reproalign.common.data.holdout import hold_out
from reproalign.common.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """The parts.

    Attributes:
        train: of dialogues and pairs to train on.
        held_out: pairs to evaluate a reward model on.
        prompts: rows whose prompts the policy answers in training.
        eval_prompts: rows whose prompts it is evaluated on.
    """

    train: list[PreferenceExample]
    held_out: list[PreferenceExample]
    prompts: list[PreferenceExample]
    eval_prompts: list[PreferenceExample]


def divide(
    train: list[PreferenceExample],
    test: list[PreferenceExample],
    config: PreferenceDataConfig,
    *,
    trained_prompts: bool = False,
) -> Split:
    """Divide rows by ``config.split``.

    ``published`` (model card of the reward model, LMFlow's documentation): the first ``test_first`` test rows join the
    training of SFT and reward model, of which the last ``test_last`` know nothing; prompts are those of the training
    rows alone. A test set with fewer rows than both parts gives the later part what the first one leaves. Evaluation
    prompts are those of the last part, with ``trained_prompts`` of the first one, as published: training data.
    ``test``: all test rows are held out. ``fraction``: a seeded share of the prompts, with all their rows.

    Raises:
        UserError: if a part is left without rows.
    """
    if config.split == "fraction":
        rows = [*train, *test]
        kept, held = hold_out(rows, config.eval_fraction, config.seed, lambda row: row.key, key="eval_fraction")
        return Split(kept, held, kept, held)
    if not test:
        raise UserError(f"split={config.split} needs test rows; set test=[FILE], or split=fraction")
    if config.split == "test":
        return Split(train, test, train, test)
    first = test[: config.test_first]
    last = test[max(config.test_first, len(test) - config.test_last) :]
    if not last:
        raise UserError(
            f"split=published: none of {len(test)} test rows is left to hold out after the first "
            f"test_first={config.test_first}; lower test_first, or set split=test"
        )
    if trained_prompts:
        logger.warning(
            "variant=released: evaluation prompts are those of the first %d test rows, which SFT and reward model are "
            "trained on",
            len(first),
        )
    return Split([*train, *first], last, train, first if trained_prompts else last)
