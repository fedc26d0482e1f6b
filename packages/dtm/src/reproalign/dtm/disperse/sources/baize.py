"""Baize's self-chats: one text with the marks of who speaks."""

from __future__ import annotations

import re
from typing import Any

from reproalign.common.data.records import RowError, column
from reproalign.dtm.disperse.first_turn import describe, first_turn
from reproalign.dtm.disperse.sources.registry import InstructionRow, Rules, source

ROLES = {"[|Human|]": "user", "[|AI|]": "assistant"}


@source("baize", ["topic", "input"])
def baize(values: dict[str, Any], rules: Rules) -> InstructionRow:
    """Baize, of which the first turn is taken. Columns: input, a transcript of ``[|Human|]`` and ``[|AI|]`` turns."""
    text = column(values, "input")
    if not isinstance(text, str):
        raise RowError("'input' must be text")
    _, *parts = re.split(r"(\[\|(?:Human|AI)\|\])", text)
    chat = [
        {"role": ROLES[mark], "content": words.strip()} for mark, words in zip(parts[::2], parts[1::2], strict=True)
    ]
    row = first_turn(chat)
    if row is None:
        raise RowError(describe(chat))
    return row
