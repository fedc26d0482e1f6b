"""The first turn of a chat as an instruction row."""

from __future__ import annotations

from typing import Any

from reproalign.common.data.records import RowError

PATTERNS = (("user", "assistant"), ("system", "user", "assistant"))


def first_turn(messages: Any, *, system: str = "drop") -> dict[str, Any] | None:
    """Return the first question and answer of a chat; None if its first turns are others.

    The rule of the release: the chat begins with ``user, assistant`` or ``system, user, assistant``; everything behind
    is dropped, and text is neither stripped nor checked.

    Args:
        messages: list of {role, content}.
        system: ``drop`` the system text (released), or ``keep`` it before the instruction, a blank line between.

    Returns:
        ``instruction``, ``input`` (empty) and ``output``, in this order.

    Raises:
        RowError: for a chat that ends before it fits or does not fit (an IndexError of the release), or is none.
    """
    if not isinstance(messages, list) or not all(isinstance(turn, dict) and "role" in turn for turn in messages):
        raise RowError("'messages' must be a list of {role, content}")
    roles = [turn["role"] for turn in messages]
    for pattern in PATTERNS:
        begin = tuple(roles[: len(pattern)])
        if begin == pattern:
            *before, question, answer = messages[: len(pattern)]
            row = {"instruction": _content(question), "input": "", "output": _content(answer)}
            if before and system == "keep":
                row["instruction"] = f"{_content(before[0])}\n\n{row['instruction']}"
            return row
        if begin == pattern[: len(begin)]:
            raise RowError(f"the chat ends too early: {describe(messages)}")
    return None


def describe(messages: list[dict[str, Any]]) -> str:
    """Say which turns a chat begins with, and which are needed."""
    found = ", ".join(str(turn["role"]) for turn in messages[:3]) or "none"
    return f"its first turns are {found}; [system,] user, assistant are needed"


def _content(turn: dict[str, Any]) -> Any:
    if "content" not in turn:
        raise RowError(f"a turn of {turn['role']} has no 'content'")
    return turn["content"]
