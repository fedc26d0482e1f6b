"""CAMEL's subject data: a problem and its solution."""

from __future__ import annotations

from typing import Any

from reproalign.common.data.records import column
from reproalign.dtm.disperse.sources.alpaca import alpaca_row
from reproalign.dtm.disperse.sources.registry import InstructionRow, Rules, source


@source("camel", ["message_1", "message_2"], hub="camel-ai/physics")
def camel(values: dict[str, Any], rules: Rules) -> InstructionRow:
    """CAMEL. Columns: message_1 (problem), message_2 (solution)."""
    return alpaca_row(column(values, "message_1"), column(values, "message_2"))
