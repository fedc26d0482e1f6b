"""The record of one prompt, which every data set is read as; and the checks that its parts pass."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict

Message = dict[str, str]
Text = str | list[Message]
ROLES = ("system", "user", "assistant", "tool")


@dataclass
class Prompt:
    r"""What a data set says of one prompt: the responses to it, and which of them are better.

    Attributes:
        messages: the turns before the responses; or text.
        responses: each its turns, mostly one of the assistant; or text.
        scores: one a response, on the data set's own scale, higher is better; None: missing. Or none at all.
        pairs: (i, j): response i is preferred to j, where the data set says so itself.
        id: of the prompt, as the data set has it.
        source: where the data set has the row from, as it says.
        domain: likewise, the field that the row is of.
        transcripts: in place of messages and responses: the whole dialogues as the data set writes them,
            ``\n\nHuman: …\n\nAssistant: …``.
        extras: what else of the row a paper's rule reads, by name.
    """

    messages: Text
    responses: Sequence[Text]
    scores: list[Any] = field(default_factory=list)
    pairs: list[tuple[int, int]] = field(default_factory=list)
    id: Any = None
    source: Any = None
    domain: Any = None
    transcripts: list[str] = field(default_factory=list)
    extras: dict[str, Any] = field(default_factory=dict)

    def preferences(self) -> list[tuple[int, int]]:
        """Return the pairs (better, worse): those given, otherwise those of responses with different scores.

        Raises:
            RowError: for a score that is no finite number.
        """
        if self.pairs or not self.scores:
            return self.pairs
        scores = (_score(f"score {number}", score) for number, score in enumerate(self.scores, start=1))
        known = [(number, score) for number, score in enumerate(scores) if score is not None]
        return [(i, j) for i, better in known for j, worse in known if better > worse]

    def turns(self) -> list[Message]:
        """Return the messages; text stands for one turn of the user."""
        return [user(self.messages)] if isinstance(self.messages, str) else self.messages

    def answer(self, index: int) -> str:
        """Return the text of a response: of its last turn."""
        response = self.responses[index]
        return response if isinstance(response, str) else response[-1]["content"]


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
    scores = check_scores(score_chosen, score_rejected)
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


def user(content: Any) -> Message:
    """Return a user's turn."""
    return {"role": "user", "content": content}


def assistant(content: Any) -> Message:
    """Return an assistant's turn."""
    return {"role": "assistant", "content": content}


def number(name: str, value: Any) -> float:
    """Return a finite number.

    Raises:
        RowError: for anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RowError(f"{name}: {value!r} is not a finite number")
    try:
        found = float(value)
    except OverflowError:  # an integer of hundreds of digits
        found = math.inf
    if not math.isfinite(found):
        raise RowError(f"{name}: {found} is not a finite number")
    return found


def text_of(row: Any, name: str, prefix: str = "") -> str:
    """Return a column that must be text; ``prefix`` says in the error what ``row`` is a part of, e.g. ``info.``.

    Raises:
        RowError: if it is not, or missing.
    """
    if not isinstance(row, dict):
        raise RowError(f"'{prefix.rstrip('.')}' must be an object with '{name}'")
    value = column(row, name)
    if not isinstance(value, str):
        raise RowError(f"'{prefix}{name}' must be text")
    return value


def list_of(row: dict[str, Any], name: str) -> list[Any]:
    """Return a column that must be a list.

    Raises:
        RowError: if it is not, or missing.
    """
    value = column(row, name)
    if not isinstance(value, list):
        raise RowError(f"'{name}' must be a list")
    return value


def column(row: dict[str, Any], name: str) -> Any:
    """Return a column that must be there.

    Raises:
        RowError: if it is missing, naming those that are there.
    """
    if name not in row:
        raise RowError(f"column '{name}' is missing (the row has: {', '.join(sorted(row)) or 'nothing'})")
    if row[name] is None:
        raise RowError(f"column '{name}' is null")
    return row[name]


def messages(row: dict[str, Any], name: str) -> list[Message]:
    """Return a column that must be a non-empty list of messages; see :func:`check_messages`."""
    return check_messages(column(row, name), name)


def check_messages(value: Any, name: str) -> list[Message]:
    """Return a non-empty list of messages with one of :data:`ROLES` and text as content.

    Raises:
        RowError: for anything else.
    """
    if not isinstance(value, list) or not value:
        raise RowError(f"column '{name}' must be a non-empty list of messages")
    for message in value:
        if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
            raise RowError(f"column '{name}': every message needs 'role' and 'content' as text")
        if message["role"] not in ROLES:
            raise RowError(f"column '{name}': unknown role '{message['role']}'; there are {', '.join(ROLES)}")
    return [{"role": message["role"], "content": message["content"]} for message in value]


def check_scores(chosen: Any, rejected: Any) -> tuple[float | None, float | None]:
    """Return both scores of a pair as numbers.

    Raises:
        RowError: for one of them alone, and what is no finite number.
    """
    scores = _score("score_chosen", chosen), _score("score_rejected", rejected)
    if (scores[0] is None) != (scores[1] is None):
        raise RowError("only one of score_chosen and score_rejected is given; give both or neither")
    return scores


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
    return None if value is None else number(name, value)
