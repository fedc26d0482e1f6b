"""Prompts of a local file."""

from __future__ import annotations

from typing import Any

from reproalign.common.data.reading import Row, local_path, read_local
from reproalign.common.data.records import Message, RowError
from reproalign.common.data.sources.hh import split_transcript
from reproalign.common.errors import UserError


def read_prompts(path: str) -> list[list[Message]]:
    """Read the prompt of every row.

    That is ``prompt`` (text or messages), otherwise ``instruction`` (text, with Alpaca's ``input`` below it if there is
    one), otherwise what is before the last answer in ``chosen`` (a transcript, as Anthropic's helpful and harmless
    dialogues are).

    Raises:
        UserError: naming the row that has none.
    """
    return [_prompt(row) for row in read_local(local_path(path, key="prompts"))]


def _prompt(row: Row) -> list[Message]:
    prompt = row.values.get("prompt", _instruction(row.values))
    if isinstance(prompt, str) and prompt.strip():
        return [{"role": "user", "content": prompt}]
    if isinstance(prompt, list) and prompt and all(isinstance(turn, dict) for turn in prompt):
        return [{"role": str(turn.get("role")), "content": str(turn.get("content"))} for turn in prompt]
    if prompt is None and isinstance(row.values.get("chosen"), str):
        try:
            turns = split_transcript(row.values["chosen"], "chosen")
        except RowError as error:
            raise UserError(f"{row.place}: {error}") from error
        if len(turns) > 1 and turns[-1]["role"] == "assistant":
            return turns[:-1]
        raise UserError(f"{row.place}: 'chosen' must be a transcript that ends with an answer to a turn before it")
    raise UserError(f"{row.place}: {row.problem or 'column prompt (text or messages) is missing or empty'}")


def _instruction(values: dict[str, Any]) -> Any:
    instruction, given = values.get("instruction"), values.get("input")
    if not isinstance(instruction, str) or not isinstance(given, str):
        return instruction
    absent = given.strip().strip("<>").lower() in ("", "noinput")  # both ways in which Alpaca says so
    return instruction if absent else f"{instruction}\n\n{given}"
