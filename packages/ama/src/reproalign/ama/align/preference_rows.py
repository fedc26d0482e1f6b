r"""Preference rows in the forms that HH-RLHF is published in, read as dialogues.

Anthropic's own (``Anthropic/hh-rlhf``): ``chosen`` and ``rejected``, whole transcripts. ``full-hh-rlhf``: ``prompt``, a
transcript that ends with ``\n\nAssistant:``, with the two answers as text. TRL's: lists of messages.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from reproalign.common.data.reading import Row
from reproalign.common.data.records import Message, Prompt, RowError, make_record
from reproalign.common.data.sources import SOURCES
from reproalign.common.data.sources.hh import parse_transcript
from reproalign.common.errors import UserError


@dataclass(frozen=True)
class PreferenceExample:
    """A prompt, its preferred answer, and the other one, if the row makes a pair.

    Attributes:
        prompt: turns, the last one the user's.
        chosen: the answer.
        rejected: the other answer; None if the row is no pair.
    """

    prompt: list[Message]
    chosen: str
    rejected: str | None

    @property
    def key(self) -> str:
        """What equal prompts have in common."""
        return json.dumps(self.prompt, ensure_ascii=False)

    def dialogue(self) -> dict[str, Any]:
        """Return the row to fine-tune on."""
        return {"messages": [*self.prompt, _answer(self.chosen)]}

    def pair(self) -> dict[str, Any]:
        """Return the pair, in TRL's preference format."""
        assert self.rejected is not None
        return {"prompt": self.prompt, "chosen": [_answer(self.chosen)], "rejected": [_answer(self.rejected)]}


def read_examples(
    rows: Iterable[Row], on_error: str, reject: Callable[[str, str, str], None]
) -> list[PreferenceExample]:
    """Read rows.

    A row whose two dialogues have different prompts, or the same answer, is no pair, but a dialogue nevertheless.

    Args:
        rows: as they are in the files.
        on_error: ``skip`` | ``raise``.
        reject: is told the place and the reason of every row that is skipped, or skipped as a pair, and which of the
            two: ``row`` | ``pair``.

    Raises:
        UserError: under ``raise``, for the first row that is no dialogue, with file and line.
    """
    examples = []
    for row in rows:
        try:
            if row.problem:
                raise RowError(row.problem)
            example, reason = _example(row.values)
        except RowError as error:
            if on_error == "raise":
                raise UserError(f"{row.place}: {error}; fix the row, or set on_error=skip") from error
            reject(row.place, str(error), "row")
            continue
        if reason:
            reject(row.place, reason, "pair")
        examples.append(example)
    return examples


def _example(row: dict[str, Any]) -> tuple[PreferenceExample, str]:
    """Return the row, and why it is no pair, if it is none."""
    found = SOURCES["preference"].read_one(row)
    wholes = [_whole(found, place, side) for place, side in enumerate(("chosen", "rejected"))]
    (prompt, chosen), (other, rejected) = ((whole[:-1], whole[-1]["content"]) for whole in wholes)
    if not chosen.strip():
        raise RowError("the preferred answer is empty")
    if prompt != other:
        return PreferenceExample(prompt, chosen, None), "chosen and rejected answer different prompts"
    try:
        make_record(prompt, [_answer(chosen)], [_answer(rejected)])
    except RowError as error:
        return PreferenceExample(prompt, chosen, None), str(error)
    return PreferenceExample(prompt, chosen, rejected), ""


def _whole(prompt: Prompt, place: int, side: str) -> list[Message]:
    """Return the dialogue of a response; text is read as a transcript."""
    response = prompt.responses[place]
    if isinstance(response, str):
        turns = parse_transcript(f"{prompt.messages}{response}", side)
    else:
        turns = [*prompt.turns(), *response]
    if len(turns) < 2 or turns[-1]["role"] != "assistant":
        raise RowError(f"'{side}' must end with an answer of the assistant to a turn before it")
    return turns


def _answer(text: str) -> Message:
    return {"role": "assistant", "content": text}
