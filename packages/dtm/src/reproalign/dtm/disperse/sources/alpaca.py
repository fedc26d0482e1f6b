"""Stanford Alpaca and what has its columns: Alpaca-GPT4, Code-Alpaca, rows that this package wrote."""

from __future__ import annotations

from typing import Any

from reproalign.common.data.records import column
from reproalign.dtm.disperse.sources.registry import InstructionRow, Rules, source


@source("alpaca", ["instruction", "output"], hub="tatsu-lab/alpaca")
def alpaca(values: dict[str, Any], rules: Rules) -> InstructionRow:
    """Alpaca rows. Columns: instruction, input (may be missing), output."""
    return alpaca_row(column(values, "instruction"), column(values, "output"), values.get("input") or "")


def alpaca_row(instruction: Any, output: Any, given: Any = "") -> InstructionRow:
    """Put the parts of a row together, in the order in which they are written."""
    return {"instruction": instruction, "input": given, "output": output}
