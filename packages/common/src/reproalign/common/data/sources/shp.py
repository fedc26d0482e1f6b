"""Stanford Human Preferences: two answers to a question on Reddit, and their votes."""

from __future__ import annotations

from typing import Any

from reproalign.common.data.records import Prompt, RowError, assistant, column, user
from reproalign.common.data.sources.registry import source


@source("shp", "history", "human_ref_A", "human_ref_B", hub="stanfordnlp/SHP", splits=("train", "test"))
def shp(row: dict[str, Any]) -> Prompt:
    """Stanford Human Preferences, raw or filtered. Columns: history, human_ref_A and _B (text), score_A and _B (votes);
    optional post_id, domain, labels (1: A is preferred).

    The answer with more votes is preferred, B on equal votes (MMPO ERRATA Q15).
    """
    history, *_ = order_answers(row)
    answers, votes = ([row[f"{name}_{side}"] for side in "AB"] for name in ("human_ref", "score"))
    return Prompt(
        [user(history)],
        [[assistant(answer)] for answer in answers],
        scores=[float(vote) for vote in votes],
        pairs=[(0, 1) if votes[0] > votes[1] else (1, 0)],
        id=row.get("post_id"),
        domain=row.get("domain"),
        extras={"labels": row.get("labels")},
    )


def order_answers(row: dict[str, Any]) -> tuple[str, str, str, tuple[float, float]]:
    """Return question, better answer, other answer and their votes of an SHP row; B is better on equal votes.

    Raises:
        RowError: for a missing column or another type.
    """
    answers = {side: column(row, f"human_ref_{side}") for side in "AB"}
    votes = {side: column(row, f"score_{side}") for side in "AB"}
    history = column(row, "history")
    if not isinstance(history, str) or not all(isinstance(answer, str) for answer in answers.values()):
        raise RowError("history, human_ref_A and human_ref_B must be text")
    if not all(isinstance(vote, int | float) and not isinstance(vote, bool) for vote in votes.values()):
        raise RowError(f"score_A={votes['A']!r} and score_B={votes['B']!r} must be numbers")
    best, other = ("A", "B") if votes["A"] > votes["B"] else ("B", "A")
    return history, answers[best], answers[other], (float(votes[best]), float(votes[other]))
