"""Answers that a rubric has graded: the better one of two is preferred."""

from __future__ import annotations

from typing import Any

from reproalign.common.data.records import Prompt, column, messages, number
from reproalign.common.data.sources import source


@source("graded", hub="me/graded", splits=("train", "test"))
def graded(row: dict[str, Any]) -> Prompt:
    """Columns: prompt, chosen, rejected (messages), score_chosen, score_rejected."""
    sides = ("chosen", "rejected")
    scores = [number(f"score_{side}", column(row, f"score_{side}")) for side in sides]
    return Prompt(messages(row, "prompt"), [messages(row, side) for side in sides], scores=scores)
