"""Chats as conversations: ShareGPT's form (Evol-Instruct V2 and others), and LIMA's, which alternates without roles."""

from __future__ import annotations

from typing import Any

from reproalign.common.data.records import Prompt, RowError
from reproalign.common.data.sources.registry import source

ROLES = {"human": "user", "user": "user", "system": "system"}
ROLES |= dict.fromkeys(("gpt", "chatgpt", "assistant", "bing", "bard"), "assistant")


@source("conversations", "conversations", hub="WizardLMTeam/WizardLM_evol_instruct_V2_196k")
def conversations(row: dict[str, Any]) -> Prompt:
    """Chats. Column: conversations, a list of {from, value} or of plain texts; the last one is the response."""
    turns = row.get("conversations")
    if not isinstance(turns, list):
        raise RowError("'conversations' must be a list")
    if all(isinstance(turn, str) for turn in turns):
        chat = [{"role": ("user", "assistant")[place % 2], "content": turn} for place, turn in enumerate(turns)]
    elif all(isinstance(turn, dict) and isinstance(turn.get("value"), str) for turn in turns):
        chat = [{"role": ROLES.get(str(turn.get("from")), str(turn.get("from"))), "content": turn["value"]}
                for turn in turns]  # fmt: skip
    else:
        raise RowError("'conversations' must hold {from, value} objects, or texts")
    return Prompt(chat[:-1], [chat[-1:]])
