"""Baize's self-chats: one text with the marks of who speaks."""

from __future__ import annotations

import re
from typing import Any

from reproalign.common.data.records import Prompt, text_of
from reproalign.common.data.sources.registry import source

ROLES = {"[|Human|]": "user", "[|AI|]": "assistant"}


@source("baize", "topic", "input")
def baize(row: dict[str, Any]) -> Prompt:
    """Baize. Columns: topic; input, a transcript of ``[|Human|]`` and ``[|AI|]`` turns."""
    _, *parts = re.split(r"(\[\|(?:Human|AI)\|\])", text_of(row, "input"))
    chat = [
        {"role": ROLES[mark], "content": words.strip()} for mark, words in zip(parts[::2], parts[1::2], strict=True)
    ]
    return Prompt(chat[:-1], [chat[-1:]])
