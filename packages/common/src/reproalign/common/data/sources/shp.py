"""Stanford Human Preferences: two answers to a question on Reddit, and their votes."""

from __future__ import annotations

from typing import Any

from reproalign.common.data.records import PreferenceRecord, RowError, column, make_record
from reproalign.common.data.sources.registry import source


@source("shp", hub="stanfordnlp/SHP", splits=("train", "test"))
def shp(row: dict[str, Any]) -> PreferenceRecord:
    """Stanford Human Preferences, raw or filtered. Columns: history, human_ref_A and _B (text), score_A and _B (votes).

    The answer with more votes is chosen, B on equal votes; ``labels`` is not read (MMPO ERRATA Q15).
    """
    history, best, other, votes = order_answers(row)
    return make_record(
        [{"role": "user", "content": history}],
        [{"role": "assistant", "content": best}],
        [{"role": "assistant", "content": other}],
        score_chosen=votes[0],
        score_rejected=votes[1],
        prompt_id=row.get("post_id"),
        domain=row.get("domain"),
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
