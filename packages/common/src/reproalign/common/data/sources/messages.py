"""Dialogues as messages: your own, the TÜLU-v2 mixture, UltraChat."""

from __future__ import annotations

from typing import Any

from reproalign.common.data.records import Prompt, RowError
from reproalign.common.data.sources.registry import source


@source("messages", "messages")
def messages(row: dict[str, Any]) -> Prompt:
    """Dialogues. Column: messages (list of {role, content}); the last one is the response."""
    turns = row.get("messages")
    if not isinstance(turns, list) or not all(isinstance(turn, dict) and "role" in turn for turn in turns):
        raise RowError("'messages' must be a list of {role, content}")
    return Prompt(turns[:-1], [turns[-1:]], source=row.get("source"), domain=row.get("dataset"))


@source("tulu", hub="allenai/tulu-v2-sft-mixture")
def tulu(row: dict[str, Any]) -> Prompt:
    """The TÜLU-v2 mixture; columns as :func:`messages` has them."""
    return messages(row)


@source("ultrachat", hub="HuggingFaceH4/ultrachat_200k", splits=("train_sft", "test_sft"))
def ultrachat(row: dict[str, Any]) -> Prompt:
    """UltraChat, dialogues without preferences; columns as :func:`messages` has them."""
    return messages(row)
