"""The files that rejection sampling hands on: prompts with n responses each, their scores, and what is selected.

One schema serves all: ``{id, prompt, responses}``, and then ``scores``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reproalign.common.data.reading import Row, local_path, read_local
from reproalign.common.data.records import Message, RowError, messages
from reproalign.common.data.sources.hh import split_transcript
from reproalign.common.errors import UserError
from reproalign.common.files import write_text

RESPONSES, SCORED, SELECTED = "responses.jsonl", "scored.jsonl", "selected.jsonl"


@dataclass(frozen=True)
class Sampled:
    """A prompt, its responses and their scores, if it has been scored."""

    id: str | int
    prompt: list[Message]
    responses: list[str]
    scores: list[float] | None = None

    def dialogues(self) -> list[list[Message]]:
        """Return the prompt with each of the responses."""
        return [[*self.prompt, {"role": "assistant", "content": text}] for text in self.responses]


def find(path: str, name: str, key: str) -> Path:
    """Return the file that ``path`` stands for: itself, ``name`` in the folder of a run, or a shipped ``demo:NAME``.

    Raises:
        UserError: naming ``key`` if there is none.
    """
    if path.startswith("demo:"):
        return local_path(path, key=key)
    found = Path(path).expanduser()
    if found.is_dir():
        found = found / name
    if not found.is_file():
        raise UserError(f"{key}={path}: no such file{f' (no {name} in it)' if found.name == name else ''}")
    return found


def read_sampled(path: Path, *, scored: bool = False) -> list[Sampled]:
    """Read prompts and responses, and if ``scored`` the scores, which are left alone otherwise.

    Raises:
        UserError: naming the row that has not got them, as many as the first row.
    """
    rows: list[Sampled] = []
    for number, row in enumerate(read_local(path)):
        if row.problem:
            raise UserError(f"{row.place}: {row.problem}")
        try:
            found = _sampled(row, number, scored)
        except RowError as error:
            raise UserError(f"{row.place}: {error}") from error
        if rows and len(found.responses) != len(rows[0].responses):
            raise UserError(
                f"{row.place}: {len(found.responses)} responses, where the rows before it have "
                f"{len(rows[0].responses)}; every prompt needs as many"
            )
        rows.append(found)
    return rows


def read_selected(path: Path, *, advice: str = "select with keep=best") -> list[list[Message]]:
    """Read selected dialogues: ``messages``, or a transcript ``chosen``, whose last turn is the assistant's.

    Args:
        path: of the rows.
        advice: what to do about rows that have no ``messages``.

    Raises:
        UserError: naming the row that has none.
    """
    dialogues = []
    for row in read_local(path):
        if row.problem:
            raise UserError(f"{row.place}: {row.problem}")
        try:
            text = None if "messages" in row.values else row.values.get("chosen")
            turns = split_transcript(text, "chosen") if isinstance(text, str) else messages(row.values, "messages")
        except RowError as error:
            raise UserError(f"{row.place}: {error}; {advice}") from error
        if len(turns) < 2 or turns[-1]["role"] != "assistant":
            name = "messages" if text is None else "chosen"
            raise UserError(f"{row.place}: column '{name}' must end with an assistant's turn after a prompt")
        dialogues.append(turns)
    return dialogues


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines, whole or not at all."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def _sampled(row: Row, number: int, scored: bool) -> Sampled:
    prompt = row.values.get("prompt")
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else messages(row.values, "prompt")
    responses = row.values.get("responses")
    if not isinstance(responses, list) or not responses or not all(isinstance(text, str) for text in responses):
        raise RowError("column 'responses' must be a non-empty list of texts, as the verb `sample` writes it")
    name = row.values.get("id", number)
    name = name if isinstance(name, int) else str(name)
    return Sampled(name, turns, responses, _scores(row.values.get("scores"), responses) if scored else None)


def _scores(scores: Any, responses: Sequence[str]) -> list[float]:
    if not isinstance(scores, list):
        raise RowError("column 'scores' is missing; score the file with the verb `score` first")
    if len(scores) != len(responses):
        raise RowError(f"{len(scores)} scores for {len(responses)} responses; every response needs one")
    for score in scores:
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise RowError(f"score {score!r} is not a finite number")
    return [float(score) for score in scores]
