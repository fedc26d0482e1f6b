"""The first turn of a chat as an instruction row: the rule by which every data set is read here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reproalign.common.data.records import Prompt, RowError, assistant
from reproalign.common.data.sources import Source
from reproalign.common.data.views import parsed

InstructionRow = dict[str, Any]  # instruction, input, output; {} if unchecked: what the release makes of a misfit

PATTERNS = (("user", "assistant"), ("system", "user", "assistant"))


@dataclass(frozen=True)
class FirstTurnRules:
    """How rows are made.

    Attributes:
        unchecked: make the release's row, as it is.
        system: ``drop`` or ``keep`` system text.
    """

    unchecked: bool = False
    system: str = "drop"


def instruction_row(prompts: list[Prompt], source: Source, rules: FirstTurnRules) -> InstructionRow:
    """Return the first turn of a row's dialogue: of pairs with the preferred response, of a tree with the best reply.

    Raises:
        RowError: for a dialogue that does not fit, or none.
    """
    if not prompts or not (prompts[0].responses or prompts[0].transcripts):
        raise RowError("the prompt has no reply")
    prompt = parsed(prompts[0])  # of a tree: its root
    best = 0
    if prompt.pairs:
        best = prompt.pairs[0][0]
    elif prompt.scores:  # the first of the highest score; without one only if there is no other
        known = [place for place, score in enumerate(prompt.scores) if score is not None]
        best = max(known, key=lambda place: (prompt.scores[place], -place), default=0)
    response = prompt.responses[best]
    chat = [*prompt.turns(), *([assistant(response)] if isinstance(response, str) else response)]
    row = first_turn(chat, system=rules.system)
    if row is None:
        if rules.unchecked and source.name in ("messages", "tulu"):
            return {}
        raise RowError(describe(chat))
    return {**row, "input": prompt.extras.get("input", "")}


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
