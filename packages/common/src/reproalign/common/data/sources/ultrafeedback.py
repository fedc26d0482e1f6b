"""UltraFeedback, binarised."""

from __future__ import annotations

from typing import Any

from reproalign.common.data.records import PreferenceRecord, RowError, make_record, messages
from reproalign.common.data.sources.registry import source


@source("ultrafeedback", hub="allenai/ultrafeedback_binarized_cleaned", splits=("train_prefs", "test_prefs"))
def ultrafeedback(row: dict[str, Any]) -> PreferenceRecord:
    """UltraFeedback, binarised. Columns: chosen and rejected (messages), score_chosen and score_rejected (1-10) or
    chosen_rating and rejected_rating, prompt_id, source. The prompt is all but the last turn of ``chosen``.
    """
    chosen, rejected = messages(row, "chosen"), messages(row, "rejected")
    if len(chosen) < 2:
        raise RowError("'chosen' has no turn before the response")
    score_chosen, score_rejected = given_scores(row)
    return make_record(
        chosen[:-1],
        chosen[-1:],
        rejected[-1:],
        score_chosen=score_chosen,
        score_rejected=score_rejected,
        prompt_id=row.get("prompt_id"),
        source=row.get("source"),
    )


def given_scores(row: dict[str, Any]) -> tuple[Any, Any]:
    """Return a row's scores as they stand: ``score_chosen`` and ``score_rejected``, if both are null the ratings."""
    scores = row.get("score_chosen"), row.get("score_rejected")
    return (row.get("chosen_rating"), row.get("rejected_rating")) if scores == (None, None) else scores
