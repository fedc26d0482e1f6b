"""Sources: one function each from a public data set's original row to a preference record.

To add one, write the function, give it a docstring that names the columns, and decorate it::

    @source("mydata", hub="me/mydata", splits=("train", "test"))
    def mydata(row):
        '''Columns: question, better, worse.'''
        ...
        return make_record(prompt, chosen, rejected)

A :class:`~reproalign.common.data.records.RowError` raised by it is reported with file and line.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from reproalign.common.data.records import Message, PreferenceRecord, RowError, Text, column, make_record, messages


@dataclass(frozen=True)
class Home:
    """Where a source's rows are on the Hub: data set, the names of its train and test splits, folder in it."""

    name: str
    hub: str | None
    splits: tuple[str, str]
    data_dir: str | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class Source(Home):
    """A registered source: its function, and its home on the Hub."""

    to_record: Callable[[dict[str, Any]], PreferenceRecord]


SOURCES: dict[str, Source] = {}


def source(
    name: str, *, hub: str | None = None, splits: tuple[str, str] = ("train", "test")
) -> Callable[[Callable[[dict[str, Any]], PreferenceRecord]], Callable[[dict[str, Any]], PreferenceRecord]]:
    """Register a function from original row to record under ``name``."""

    def register(
        function: Callable[[dict[str, Any]], PreferenceRecord],
    ) -> Callable[[dict[str, Any]], PreferenceRecord]:
        SOURCES[name] = Source(name, hub, splits, function)
        return function

    return register


@source("ultrafeedback", hub="allenai/ultrafeedback_binarized_cleaned", splits=("train_prefs", "test_prefs"))
def ultrafeedback(row: dict[str, Any]) -> PreferenceRecord:
    """UltraFeedback, binarised. Columns: chosen and rejected (messages), score_chosen and score_rejected (1-10) or
    chosen_rating and rejected_rating, prompt_id, source. The prompt is all but the last turn of ``chosen``.
    """
    chosen, rejected = messages(row, "chosen"), messages(row, "rejected")
    if len(chosen) < 2:
        raise RowError("'chosen' has no turn before the response")
    rated = row.get("score_chosen") is None and row.get("score_rejected") is None
    scores = ("chosen_rating", "rejected_rating") if rated else ("score_chosen", "score_rejected")
    return make_record(
        chosen[:-1],
        chosen[-1:],
        rejected[-1:],
        score_chosen=row.get(scores[0]),
        score_rejected=row.get(scores[1]),
        prompt_id=row.get("prompt_id"),
        source=row.get("source"),
    )


@source("shp", hub="stanfordnlp/SHP", splits=("train", "test"))
def shp(row: dict[str, Any]) -> PreferenceRecord:
    """Stanford Human Preferences, raw or filtered. Columns: history, human_ref_A and _B (text), score_A and _B (votes).

    The answer with more votes is chosen, B on equal votes; ``labels`` is not read (MMPO ERRATA Q15).
    """
    history, best, other, votes = order_answers(row)
    return make_record(
        [{"role": "user", "content": history}],
        [{"role": "assistant", "content": best}],
        [{"role": "assistant", "content": other}],
        score_chosen=votes[0],
        score_rejected=votes[1],
        prompt_id=row.get("post_id"),
        domain=row.get("domain"),
    )


def order_answers(row: dict[str, Any]) -> tuple[str, str, str, tuple[float, float]]:
    """Return question, better answer, other answer and their votes of an SHP row; B is better on equal votes.

    Raises:
        RowError: for a missing column or another type.
    """
    answers = {side: column(row, f"human_ref_{side}") for side in "AB"}
    votes = {side: column(row, f"score_{side}") for side in "AB"}
    history = column(row, "history")
    if not isinstance(history, str) or not all(isinstance(answer, str) for answer in answers.values()):
        raise RowError("history, human_ref_A and human_ref_B must be text")
    if not all(isinstance(vote, int | float) and not isinstance(vote, bool) for vote in votes.values()):
        raise RowError(f"score_A={votes['A']!r} and score_B={votes['B']!r} must be numbers")
    best, other = ("A", "B") if votes["A"] > votes["B"] else ("B", "A")
    return history, answers[best], answers[other], (float(votes[best]), float(votes[other]))


@source("hh", hub="Anthropic/hh-rlhf", splits=("train", "test"))
def hh(row: dict[str, Any]) -> PreferenceRecord:
    r"""Anthropic's helpful and harmless dialogues. Columns: chosen and rejected, transcripts of ``\n\nHuman: …`` and
    ``\n\nAssistant: …`` turns. The turns both share are the prompt; the last turn of each is the response. No scores.
    """
    chosen, rejected = (transcript(column(row, name), name) for name in ("chosen", "rejected"))
    if len(chosen) < 2 or len(rejected) < 2:
        raise RowError("a transcript needs a turn before the response")
    return make_record(chosen[:-1], chosen[-1:], rejected[-1:])


@source("preference")
def preference(row: dict[str, Any]) -> PreferenceRecord:
    """TRL's preference format. Columns: chosen and rejected, with prompt (explicit) or with it inside (implicit), as
    text or as messages; optional score_chosen and score_rejected, prompt_id, source, domain.
    """
    if isinstance(column(row, "chosen"), str):
        prompt, chosen, rejected = _standard(row)
    else:
        prompt, chosen, rejected = _conversational(row)
    extras = {name: row.get(name) for name in ("score_chosen", "score_rejected", "prompt_id", "source", "domain")}
    return make_record(prompt, chosen, rejected, **extras)


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


def _standard(row: dict[str, Any]) -> tuple[Text, Text, Text]:
    chosen, rejected = row["chosen"], column(row, "rejected")
    if not isinstance(rejected, str):
        raise RowError("'chosen' is text but 'rejected' is not")
    prompt = row.get("prompt")  # None: columns of other rows in the file, as Parquet fills them in
    if prompt is not None:
        if not isinstance(prompt, str):
            raise RowError("'chosen' is text but 'prompt' is not")
        return prompt, chosen, rejected
    # Implicit prompt: what both share, up to the last white space so that no word is cut in two.
    shared = next(
        (index for index, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b),
        min(len(chosen), len(rejected)),
    )
    cut = max((chosen.rfind(space, 0, shared) + 1 for space in (" ", "\n")), default=0)
    return chosen[:cut], chosen[cut:], rejected[cut:]


def _conversational(row: dict[str, Any]) -> tuple[Text, Text, Text]:
    chosen, rejected = messages(row, "chosen"), messages(row, "rejected")
    if row.get("prompt") is not None:
        return messages(row, "prompt"), chosen, rejected
    if len(chosen) < 2:
        raise RowError("'chosen' has no turn before the response, and there is no 'prompt'")
    return chosen[:-1], chosen[-1:], rejected[-1:]
