"""Views of the record of a prompt: preference pairs, and dialogues to fine-tune on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from reproalign.common.data.records import (
    Message,
    PreferenceRecord,
    Prompt,
    RowError,
    assistant,
    check_messages,
    make_record,
)
from reproalign.common.data.sources import Source
from reproalign.common.data.sources.hh import split_transcript

Part = TypeVar("Part")
Record = TypeVar("Record")


@dataclass(frozen=True)
class View(Generic[Part, Record]):
    """What a verb makes of prompts.

    Attributes:
        parts: from a prompt to the parts of records, checked; raises
            :class:`~reproalign.common.data.records.RowError`, which is then reported with file and line.
        prompt_of: what records of one prompt have in common, for :func:`~reproalign.common.data.holdout.hold_out`.
        collect: from all parts of a split to its records, given its source and whether it is trained on.
    """

    parts: Callable[[Prompt, Source], list[Part]]
    prompt_of: Callable[[Record], Any]
    collect: Callable[[list[Part], Source, bool], list[Record]] = lambda parts, source, train: parts  # type: ignore[assignment,return-value]


def parsed(prompt: Prompt) -> Prompt:
    """Return the prompt with its transcripts as messages: what the first one has before its last turn is the prompt.

    Raises:
        RowError: for a text that is no transcript, or has no turn before the response.
    """
    if not prompt.transcripts:
        return prompt
    names = ("chosen", "rejected") if len(prompt.transcripts) == 2 else [f"text {n}" for n in range(1, 100)]
    dialogues = [split_transcript(text, name) for text, name in zip(prompt.transcripts, names, strict=False)]
    if any(len(dialogue) < 2 for dialogue in dialogues):
        raise RowError("a transcript needs a turn before the response")
    return replace(
        prompt, messages=dialogues[0][:-1], responses=[dialogue[-1:] for dialogue in dialogues], transcripts=[]
    )


def preference_records(prompt: Prompt, source: Source) -> list[PreferenceRecord]:
    """Return the pairs of a prompt in TRL's preference format, with scores where each of its responses has one.

    Raises:
        RowError: for a pair that does not pass :func:`~reproalign.common.data.records.make_record`, or a row without
            responses to compare.
    """
    prompt = parsed(prompt)
    if len(prompt.responses) < 2 and not source.gather:
        raise RowError(f"source '{source.name}' has no pairs in its rows; give data with two responses to a prompt")
    found = []
    for better, worse in prompt.preferences():
        scores = (
            {"score_chosen": prompt.scores[better], "score_rejected": prompt.scores[worse]} if prompt.scores else {}
        )
        marks = {"prompt_id": prompt.id, "source": prompt.source, "domain": prompt.domain}
        found.append(make_record(prompt.messages, prompt.responses[better], prompt.responses[worse], **scores, **marks))
    return found


def dialogue(prompt: Prompt) -> list[Message]:
    """Return the prompt's turns with its best response: of pairs the preferred one, otherwise the first.

    Raises:
        RowError: for turns that are no messages.
    """
    prompt = parsed(prompt)
    better = (prompt.preferences() or [(0, 0)])[0][0]
    response = prompt.responses[better]
    turns = [assistant(response)] if isinstance(response, str) else response
    return check_messages([*prompt.turns(), *turns], "messages")


def dialogues(prompt: Prompt, source: Source) -> list[dict[str, list[Message]]]:
    """Return the row to fine-tune on; none where the prompt has no response."""
    return [{"messages": dialogue(prompt)}] if prompt.responses or prompt.transcripts else []


PREFERENCES: View[PreferenceRecord, PreferenceRecord] = View(preference_records, lambda record: record["prompt"])
DIALOGUES: View[dict[str, list[Message]], dict[str, list[Message]]] = View(dialogues, lambda row: row["messages"][:-1])
