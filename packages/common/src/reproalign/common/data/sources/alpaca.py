"""Stanford Alpaca and what has its columns: Alpaca-GPT4, Code-Alpaca, AlpacaEval's prompts."""

from __future__ import annotations

from typing import Any

from reproalign.common.data.records import Prompt, assistant, column, text_of, user
from reproalign.common.data.sources.registry import source


@source("alpaca", "instruction", "output", hub="tatsu-lab/alpaca")
def alpaca(row: dict[str, Any]) -> Prompt:
    """Alpaca rows. Columns: instruction, output; optional input, which stands in ``extras``."""
    question, answer = user(column(row, "instruction")), assistant(column(row, "output"))
    return Prompt([question], [[answer]], extras={"input": row.get("input") or ""})


@source(
    "alpacaeval",
    *("instruction", "output", "generator"),
    hub="tatsu-lab/alpaca_eval",
    splits=("eval", "eval"),
    evaluation_only=True,
)
def alpacaeval(row: dict[str, Any]) -> Prompt:
    """AlpacaEval's instructions, for evaluation only. Columns: instruction, output; optional dataset."""
    question, answer = user(text_of(row, "instruction")), assistant(text_of(row, "output"))
    return Prompt([question], [[answer]], domain=row.get("dataset"))
