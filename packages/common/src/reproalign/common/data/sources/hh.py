"""Anthropic's helpful and harmless dialogues, and transcripts like theirs."""

from __future__ import annotations

import re
from typing import Any

from reproalign.common.data.records import Message, Prompt, RowError, text_of
from reproalign.common.data.sources.registry import source


@source("hh", hub="Anthropic/hh-rlhf")
def hh(row: dict[str, Any]) -> Prompt:
    r"""Anthropic's helpful and harmless dialogues. Columns: chosen and rejected, transcripts of ``\n\nHuman: …`` and
    ``\n\nAssistant: …`` turns.
    """
    return Prompt([], [], pairs=[(0, 1)], transcripts=[text_of(row, name) for name in ("chosen", "rejected")])


@source("hh_helpful", hub="Anthropic/hh-rlhf", data_dir="helpful-base")
def hh_helpful(row: dict[str, Any]) -> Prompt:
    """The folder helpful-base of :func:`hh`."""
    return hh(row)


@source("hh_harmless", hub="Anthropic/hh-rlhf", data_dir="harmless-base")
def hh_harmless(row: dict[str, Any]) -> Prompt:
    """The folder harmless-base of :func:`hh`."""
    return hh(row)


def split_transcript(text: Any, name: str) -> list[Message]:
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
    for turn in split_transcript(text, name):
        if turns and turns[-1]["role"] == turn["role"]:
            turns[-1] = {**turn, "content": f"{turns[-1]['content']}\n\n{turn['content']}"}
        else:
            turns.append(turn)
    if turns[0]["role"] != "user" or turns[-1]["role"] != "assistant":
        raise RowError("the transcript must begin with a turn of the Human and end with one of the Assistant")
    return turns
