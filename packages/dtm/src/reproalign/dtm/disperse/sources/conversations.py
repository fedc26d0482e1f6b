"""Chats as conversations: ShareGPT's form (Evol-Instruct V2 and others), and LIMA's, which alternates without roles."""

from __future__ import annotations

from typing import Any

from reproalign.common.data.records import RowError
from reproalign.dtm.disperse.first_turn import describe, first_turn
from reproalign.dtm.disperse.sources.registry import InstructionRow, Rules, source

ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


@source("conversations", ["conversations"], hub="WizardLMTeam/WizardLM_evol_instruct_V2_196k")
def conversations(values: dict[str, Any], rules: Rules) -> InstructionRow:
    """Chats, of which the first turn is taken. Columns: conversations, a list of {from, value} or of plain texts."""
    turns = values.get("conversations")
    if not isinstance(turns, list):
        raise RowError("'conversations' must be a list")
    if all(isinstance(turn, str) for turn in turns):
        chat = [{"role": ("user", "assistant")[place % 2], "content": turn} for place, turn in enumerate(turns)]
    elif all(isinstance(turn, dict) and isinstance(turn.get("value"), str) for turn in turns):
        chat = [{"role": ROLES.get(str(turn.get("from")), str(turn.get("from"))), "content": turn["value"]}
                for turn in turns]  # fmt: skip
    else:
        raise RowError("'conversations' must hold {from, value} objects, or texts")
    row = first_turn(chat, system=rules.system)
    if row is None:
        raise RowError(describe(chat))
    return row
