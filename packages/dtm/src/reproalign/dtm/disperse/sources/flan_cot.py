"""FLAN's chain-of-thought data: question, rationale, answer."""

from __future__ import annotations

from typing import Any

from reproalign.common.data.records import RowError, column
from reproalign.dtm.disperse.sources.alpaca import alpaca_row
from reproalign.dtm.disperse.sources.registry import InstructionRow, Rules, source


@source("flan_cot", ["question", "answer", "rationale"])
def flan_cot(values: dict[str, Any], rules: Rules) -> InstructionRow:
    """FLAN chain of thought. Columns: question, rationale, answer. The response is the rationale, then the answer."""
    question, rationale, answer = (column(values, name) for name in ("question", "rationale", "answer"))
    if not all(isinstance(text, str) for text in (question, rationale, answer)):
        raise RowError("question, rationale and answer must be text")
    return alpaca_row(question, f"{rationale.strip()}\nThe answer is {answer.strip()}.")
