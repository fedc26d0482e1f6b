"""Preference pairs, of which the chosen response is what is to be learned; the shipped demo pairs are such."""

from __future__ import annotations

from typing import Any

from reproalign.common.data.records import RowError, messages
from reproalign.dtm.disperse.first_turn import describe, first_turn
from reproalign.dtm.disperse.sources.registry import InstructionRow, Rules, source


@source("preference", ["prompt", "chosen"])
def preference(values: dict[str, Any], rules: Rules) -> InstructionRow:
    """Pairs, of which the first turn is taken. Columns: prompt and chosen (messages)."""
    chat = [dict(turn) for turn in (*messages(values, "prompt"), *messages(values, "chosen"))]
    row = first_turn(chat, system=rules.system)
    if row is None:
        raise RowError(describe(chat))
    return row
