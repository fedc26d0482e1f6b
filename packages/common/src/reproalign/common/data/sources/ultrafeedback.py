"""UltraFeedback, binarised."""

from __future__ import annotations

from typing import Any

from reproalign.common.data.records import Prompt, RowError, messages
from reproalign.common.data.sources.registry import source


@source("ultrafeedback", hub="allenai/ultrafeedback_binarized_cleaned", splits=("train_prefs", "test_prefs"))
def ultrafeedback(row: dict[str, Any]) -> Prompt:
    """UltraFeedback, binarised, cleaned of TruthfulQA's prompts. Columns: chosen and rejected (messages); optional
    score_chosen and score_rejected (1-10) or chosen_rating and rejected_rating, prompt_id, source.

    The prompt is all but the last turn of ``chosen``.
    """
    chosen, rejected = messages(row, "chosen"), messages(row, "rejected")
    if len(chosen) < 2:
        raise RowError("'chosen' has no turn before the response")
    scores = given_scores(row)
    return Prompt(
        chosen[:-1],
        [chosen[-1:], rejected[-1:]],
        scores=[] if scores == (None, None) else [*scores],
        pairs=[(0, 1)],
        id=row.get("prompt_id"),
        source=row.get("source"),
        extras={"prompts_differ": rejected[:-1] != chosen[:-1]},
    )


@source("ultrabin", hub="HuggingFaceH4/ultrafeedback_binarized", splits=("train_prefs", "test_prefs"))
def ultrabin(row: dict[str, Any]) -> Prompt:
    """UltraFeedback, binarised by the alignment-handbook; columns as :func:`ultrafeedback` has them."""
    return ultrafeedback(row)


@source("ultrafeedback_hybrid", hub="wzhouad/gemma-2-ultrafeedback-hybrid")
def ultrafeedback_hybrid(row: dict[str, Any]) -> Prompt:
    """UltraFeedback with responses of Gemma 2; columns as :func:`ultrafeedback` has them."""
    return ultrafeedback(row)


def given_scores(row: dict[str, Any]) -> tuple[Any, Any]:
    """Return a row's scores as they stand: ``score_chosen`` and ``score_rejected``, if both are null the ratings."""
    scores = row.get("score_chosen"), row.get("score_rejected")
    return (row.get("chosen_rating"), row.get("rejected_rating")) if scores == (None, None) else scores
