"""The rewards that RAFT's release records of an iteration, and its rules of selection."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from reproalign.common.generation.samples import Sampled
from reproalign.common.generation.select import SelectionRules, select_row

RECORDS = ("mean", "first")
_PENALTY = -888888888.0  # what the release writes in the place of a discarded response's reward
_LOWEST = -1000.0  # and below which a best reward is taken for such a one


@dataclass(frozen=True)
class ReleasedRules:
    """One of the forms in which the release selects and records.

    Attributes:
        selection: what is stored.
        record: whose reward column A is of (:data:`RECORDS`).
    """

    selection: SelectionRules
    record: str = "mean"


# `live`: training (raft_aligner.py); `live_eval`: evaluation (raft_aligner_eval.py), where a discarded response counts
# 0; the others are commented out in the same files.
RELEASED_RULES = {
    "live": ReleasedRules(SelectionRules(None, "best", "lmflow", None, _LOWEST)),
    "live_eval": ReleasedRules(SelectionRules(None, "best", "lmflow", 0.0, _LOWEST)),
    "commented_keep_all": ReleasedRules(SelectionRules(None, "all", "lmflow", -5.0, _LOWEST)),
    "commented_first": ReleasedRules(SelectionRules(None, "best", "lmflow", None, _LOWEST), "first"),
}


def reward_record(ranks: Sequence[Sequence[Sampled]], rules: SelectionRules, record: str = "mean") -> list[float]:
    """Return columns A to D of a line of the release's ``reward_record.txt``.

    Of each process: A, the mean over its prompts of the mean raw reward of a prompt's responses (``record=first``: of
    the first response's); B and D, the mean of the stored rewards; C, the mean over all responses, discarded ones with
    what they count, or -888888888 where they take no part, which makes C meaningless in training. A column is the mean
    over the processes, weighted by how many prompts each of them stored. A is the reward that the release reports.

    Args:
        ranks: scored rows of each process.
        rules: what is stored.
        record: ``mean`` or ``first``.

    Returns:
        Four numbers; NaN if nothing is stored.
    """
    weights: list[int] = []
    columns: list[tuple[float, ...]] = []
    for rows in ranks:
        counted = [[_PENALTY if reward is None else reward for reward in rules.counted(row)] for row in rows]
        stored = [
            max(rewards) for row, rewards in zip(rows, counted, strict=True) if select_row(row, rules) is not None
        ]
        if stored:
            raw = [row.scores[: 1 if record == "first" else rules.n] for row in rows if row.scores]
            best = fmean(stored)
            columns.append((fmean(map(fmean, raw)), best, fmean(map(fmean, counted)), best))
            weights.append(len(stored))
    if not columns:
        return [math.nan] * 4
    return [fmean(column, weights) for column in zip(*columns, strict=True)]


def record_line(columns: Sequence[float]) -> str:
    """Return a line of ``reward_record.txt``: numbers that three spaces follow."""
    return "".join(f"{value}   " for value in columns) + "\n"
