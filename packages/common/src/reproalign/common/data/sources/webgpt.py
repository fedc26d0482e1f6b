"""OpenAI's WebGPT comparisons, and FineGrainedRLHF's QA-Feedback in their columns."""

from __future__ import annotations

from typing import Any

from reproalign.common.data.records import Prompt, assistant, column, number, text_of, user
from reproalign.common.data.sources.registry import source


@source(
    "webgpt",
    *("question", "answer_0", "answer_1", "score_0", "score_1"),
    hub="openai/webgpt_comparisons",
    splits=("train", ""),
    revision="refs/convert/parquet",
)
def webgpt(row: dict[str, Any]) -> Prompt:
    """WebGPT's comparisons. Columns: question (with full_text), answer_0, answer_1, score_0, score_1 (-1 to 1)."""
    question = text_of(column(row, "question"), "full_text", "question.")
    scores = [number(name, column(row, name)) for name in ("score_0", "score_1")]
    return Prompt([user(question)], [[assistant(text_of(row, f"answer_{side}"))] for side in (0, 1)], scores=scores)
