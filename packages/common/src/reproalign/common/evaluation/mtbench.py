"""MT-Bench: reading a judge's ratings, and their averages."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from statistics import fmean
from typing import Any

from reproalign.common.errors import UserError

_DOUBLE = re.compile(r"\[\[(\d+\.?\d*)\]\]")
_SINGLE = re.compile(r"\[(\d+\.?\d*)\]")
CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
FIRST_QUESTION, PER_CATEGORY = 81, 10


def rating(judgment: str) -> int | float:
    """Return the first ``[[number]]`` of a judgment, else the first ``[number]``, else -1."""
    match = _DOUBLE.search(judgment) or _SINGLE.search(judgment)
    if match is None:
        return -1
    text = match.group(1)
    return float(text) if "." in text else int(text)


def averages(judgments: list[dict[str, Any]]) -> dict[str, float]:
    """Average single-answer judgments: over all, by turn, and by category; scores of -1 are dropped.

    Args:
        judgments: rows of FastChat's judgment file: ``question_id``, ``turn``, ``score``.
    """
    groups: dict[str, list[float]] = defaultdict(list)
    for row in judgments:
        if row["score"] == -1:
            continue
        groups["mt_bench"].append(row["score"])
        groups[f"turn_{row['turn']}"].append(row["score"])
        index = (row["question_id"] - FIRST_QUESTION) // PER_CATEGORY
        if 0 <= index < len(CATEGORIES):
            groups[CATEGORIES[index]].append(row["score"])
    return {name: fmean(scores) for name, scores in groups.items()}


def read_judgments(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Read FastChat's ``model_judgment/*_single.jsonl``: {model: rows}.

    Raises:
        UserError: naming the line that is not such a row.
    """
    models: dict[str, list[dict[str, Any]]] = defaultdict(list)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if "score" not in row:
                row["score"] = rating(row["judgment"])
            models[row["model"]].append({key: row[key] for key in ("question_id", "turn", "score")})
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} line {number}: not a judgment (question_id, model, turn and score or judgment are needed)"
            ) from error
    return dict(models)
