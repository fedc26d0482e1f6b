"""Dropping pairs whose chosen response holds a HumanEval problem or solution."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reproalign.common.data.reading import Row, read_hub, read_local
from reproalign.common.errors import UserError

# Solutions so short that they occur in innocent code. The released list means four entries, but its last one lacks a
# comma between two string literals and so never matches (ERRATA Q27).
WHITELIST = ("return x + y", "return len(string)", "return n**2")
BROKEN_ENTRY = "return .join(strings)"
FIXED_ENTRY = "return ''.join(strings)"


def extract_docstring(prompt: str) -> str:
    """Return the docstring of a HumanEval prompt.

    Two triple double quotes: what stands between them; four: the second quoted part. Without any, exactly two triple
    single quotes.

    Raises:
        ValueError: for any other number of quotes.
    """
    for quotes, allowed in (('"""', (2, 4)), ("'''", (2,))):
        count = prompt.count(quotes)
        if count in allowed:
            return prompt.split(quotes)[count - 1].strip()
        if count:
            raise ValueError(f"cannot find the docstring: {count} times {quotes}")
    raise ValueError("cannot find the docstring: no triple quotes")


def filter_strings(problems: Iterable[Mapping[str, Any]], *, fix_whitelist: bool = False) -> dict[str, list[str]]:
    """Return the docstrings and the solutions of HumanEval ``problems`` by which texts are dropped."""
    whitelist = {*WHITELIST, FIXED_ENTRY if fix_whitelist else BROKEN_ENTRY}
    problems = list(problems)
    solutions = [problem["canonical_solution"].strip() for problem in problems]
    return {
        "human_eval_docstrings": [extract_docstring(problem["prompt"]) for problem in problems],
        "human_eval_solutions": [text for text in solutions if text and text not in whitelist],
    }


def normalise(text: str) -> str:
    """Lower-case, and make every run of white space one space."""
    return " ".join(text.lower().split())


def keep_mask(texts: Sequence[str], filter_out: Mapping[str, Sequence[str]]) -> list[bool]:
    """Say for every text whether none of the filter strings occurs in it, both normalised.

    One regular expression over all strings: each text is read once, not once per string.
    """
    needles = sorted({normalise(string) for strings in filter_out.values() for string in strings}, key=len)
    if not needles:
        return [True] * len(texts)
    pattern = re.compile("|".join(map(re.escape, needles)))
    return [pattern.search(normalise(text)) is None for text in texts]


def load_problems(where: str, key: str) -> list[dict[str, Any]]:
    """Load HumanEval from the Hub (``humaneval``) or a local file with columns prompt and canonical_solution.

    Args:
        where: ``humaneval`` or the file.
        key: the option that says so, for errors.

    Raises:
        UserError: if it cannot be loaded or lacks a column.
    """
    rows = _read_hub(key) if where == "humaneval" else read_local(_existing(where, key))
    problems = []
    for row in rows:
        if row.problem or not {"prompt", "canonical_solution"} <= row.values.keys():
            raise UserError(f"{row.place}: {row.problem or 'columns prompt and canonical_solution are needed'}")
        problems.append(row.values)
    return problems


def _read_hub(key: str) -> Iterable[Row]:
    try:
        return read_hub("openai_humaneval", None, "test", None)[0]
    except UserError as error:
        said = str(error).partition("; ")[0]
        raise UserError(f"{said}; set {key} to a local JSON-lines file of HumanEval, or to null") from error


def _existing(where: str, key: str) -> Path:
    path = Path(where).expanduser()
    if not path.is_file():
        raise UserError(f"{key}={where}: neither 'humaneval' nor a file")
    return path
