"""Chats as messages: the TÜLU-v2 mixture of the paper, and everything in its form."""

from __future__ import annotations

from typing import Any

from reproalign.common.data.records import RowError
from reproalign.dtm.disperse.first_turn import describe, first_turn
from reproalign.dtm.disperse.sources.registry import InstructionRow, Rules, source


@source("messages", ["messages"], hub="allenai/tulu-v2-sft-mixture")
def messages(values: dict[str, Any], rules: Rules) -> InstructionRow:
    """Chats, of which the first turn is taken. Columns: messages (list of {role, content})."""
    row = first_turn(values.get("messages"), system=rules.system)
    if row is None and not rules.released:
        raise RowError(describe(values["messages"]))
    return row or {}
