"""FLAN's chain-of-thought data: question, rationale, answer."""

from __future__ import annotations

from typing import Any

from reproalign.common.data.records import Prompt, assistant, text_of, user
from reproalign.common.data.sources.registry import source


@source("flan_cot", "question", "answer", "rationale")
def flan_cot(row: dict[str, Any]) -> Prompt:
    """FLAN chain of thought. Columns: question, rationale, answer. The response is the rationale, then the answer."""
    question, rationale, answer = (text_of(row, name) for name in ("question", "rationale", "answer"))
    return Prompt([user(question)], [[assistant(f"{rationale.strip()}\nThe answer is {answer.strip()}.")]])
