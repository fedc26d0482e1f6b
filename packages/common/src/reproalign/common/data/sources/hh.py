"""Anthropic's helpful and harmless dialogues, and transcripts like theirs."""

from __future__ import annotations

import re
from typing import Any

from reproalign.common.data.records import Message, PreferenceRecord, RowError, column, make_record
from reproalign.common.data.sources.registry import source


@source("hh", hub="Anthropic/hh-rlhf", splits=("train", "test"))
def hh(row: dict[str, Any]) -> PreferenceRecord:
    r"""Anthropic's helpful and harmless dialogues. Columns: chosen and rejected, transcripts of ``\n\nHuman: …`` and
    ``\n\nAssistant: …`` turns. The turns both share are the prompt; the last turn of each is the response. No scores.
    """
    chosen, rejected = (transcript(column(row, name), name) for name in ("chosen", "rejected"))
    if len(chosen) < 2 or len(rejected) < 2:
        raise RowError("a transcript needs a turn before the response")
    return make_record(chosen[:-1], chosen[-1:], rejected[-1:])


def transcript(text: Any, name: str) -> list[Message]:
    """Split a Human/Assistant transcript into messages.

    Raises:
        RowError: if it is no such transcript.
    """
    if not isinstance(text, str):
        raise RowError(f"'{name}' must be text")
    parts = re.split(r"\n\n(Human|Assistant):", text)
    if parts[0].strip() or len(parts) < 3:
        raise RowError(f"'{name}' must be a transcript that begins with '\\n\\nHuman:'")
    roles = {"Human": "user", "Assistant": "assistant"}
    return [
        {"role": roles[speaker], "content": words.strip()}
        for speaker, words in zip(parts[1::2], parts[2::2], strict=True)
    ]


def parse_transcript(text: str, name: str = "text") -> list[Message]:
    """Split a transcript into messages; turns of one speaker in a row become one, since chat templates refuse them.

    Raises:
        RowError: if it is no transcript from a Human's turn to an Assistant's.
    """
    turns: list[Message] = []
    for turn in transcript(text, name):
        if turns and turns[-1]["role"] == turn["role"]:
            turns[-1] = {**turn, "content": f"{turns[-1]['content']}\n\n{turn['content']}"}
        else:
            turns.append(turn)
    if turns[0]["role"] != "user" or turns[-1]["role"] != "assistant":
        raise RowError("the transcript must begin with a turn of the Human and end with one of the Assistant")
    return turns
