"""Preference records: TRL's preference format with scores, and the checks every row passes."""

from __future__ import annotations

import math
from typing import Any, TypedDict

Message = dict[str, str]
Text = str | list[Message]


class PreferenceRecord(TypedDict):
    """One pair. ``prompt``, ``chosen`` and ``rejected`` are all strings, or all lists of messages (TRL's two forms).

    ``chosen`` and ``rejected`` hold the completion alone. Scores are on the data set's own scale, higher is better.
    """

    prompt: Text
    chosen: Text
    rejected: Text
    prompt_id: str | None
    score_chosen: float | None
    score_rejected: float | None
    source: str | None
    domain: str | None


class RowError(Exception):
    """A row that does not fit; the message says what was expected."""


def make_record(
    prompt: Text,
    chosen: Text,
    rejected: Text,
    *,
    score_chosen: Any = None,
    score_rejected: Any = None,
    prompt_id: Any = None,
    source: Any = None,
    domain: Any = None,
) -> PreferenceRecord:
    """Check the parts of a pair and put them together.

    Raises:
        RowError: for an empty completion, equal completions, a score that is no finite number, or a wrong shape.
    """
    for name, part in (("chosen", chosen), ("rejected", rejected)):
        _check_completion(name, part)
    if chosen == rejected:
        raise RowError("chosen and rejected are the same; a pair needs two different responses")
    scores = [
        _score(name, value) for name, value in (("score_chosen", score_chosen), ("score_rejected", score_rejected))
    ]
    if (scores[0] is None) != (scores[1] is None):
        raise RowError("only one of score_chosen and score_rejected is given; give both or neither")
    return PreferenceRecord(
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        prompt_id=None if prompt_id is None else str(prompt_id),
        score_chosen=scores[0],
        score_rejected=scores[1],
        source=None if source is None else str(source),
        domain=None if domain is None else str(domain),
    )


def column(row: dict[str, Any], name: str) -> Any:
    """Return a column that must be there.

    Raises:
        RowError: if it is missing, naming those that are there.
    """
    if row.get(name) is None:
        raise RowError(f"column '{name}' is missing (the row has: {', '.join(sorted(row)) or 'nothing'})")
    return row[name]


def messages(row: dict[str, Any], name: str) -> list[Message]:
    """Return a column that must be a non-empty list of messages with string role and content."""
    value = column(row, name)
    if not isinstance(value, list) or not value:
        raise RowError(f"column '{name}' must be a non-empty list of messages")
    for message in value:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise RowError(f"column '{name}': every message needs 'role' and 'content' as text")
    return [{"role": message["role"], "content": message["content"]} for message in value]


def _check_completion(name: str, part: Text) -> None:
    if isinstance(part, str):
        text = part
    elif len(part) and part[-1]["role"] == "assistant":
        text = part[-1]["content"]
    else:
        raise RowError(f"'{name}' must end with an assistant message")
    if not text.strip():
        raise RowError(f"'{name}' is empty; a response needs some text")


def _score(name: str, value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RowError(f"{name}={value!r} is not a number")
    if not math.isfinite(value):
        raise RowError(f"{name} is {value}; a finite number is needed")
    return float(value)
