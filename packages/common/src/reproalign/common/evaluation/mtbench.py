"""MT-Bench: reading a judge's ratings, and scores by category and turn with intervals over questions."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reproalign.common.data.fastchat import QuestionId
from reproalign.common.errors import UserError
from reproalign.common.records.handed_on import intact

_DOUBLE = re.compile(r"\[\[(\d+\.?\d*)\]\]")
_SINGLE = re.compile(r"\[(\d+\.?\d*)\]")
CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
FIRST_QUESTION, PER_CATEGORY = 81, 10
UNREADABLE = -1
LOWEST, HIGHEST = 1, 10


@dataclass(frozen=True)
class MeanRating:
    """The mean rating of a group of judgments.

    Attributes:
        category: ``all``, or the questions' category.
        turn: ``both``, ``1`` or ``2``.
        mean: of the ratings that could be read; None if there are none.
        low: lower end of the bootstrap interval over questions; None if there is only one.
        high: upper end.
        questions: that have a rating.
        ratings: how many there are.
        unreadable: judgments without a rating, which take no part.
    """

    category: str
    turn: str
    mean: float | None
    low: float | None
    high: float | None
    questions: int
    ratings: int
    unreadable: int


def rating(judgment: str) -> int | float:
    """Return the first ``[[number]]`` of a judgment, else the first ``[number]``, else -1."""
    match = _DOUBLE.search(judgment) or _SINGLE.search(judgment)
    if match is None:
        return UNREADABLE
    text = match.group(1)
    return float(text) if "." in text else int(text)


def category_of(question_id: QuestionId) -> str | None:
    """Return the category of a question of MT-Bench by its number, 81 to 160; None of any other."""
    index = (question_id - FIRST_QUESTION) // PER_CATEGORY if isinstance(question_id, int) else -1
    return CATEGORIES[index] if 0 <= index < len(CATEGORIES) else None


def summarize(
    judgments: Sequence[Mapping[str, Any]],
    categories: Mapping[QuestionId, str] | None = None,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> list[MeanRating]:
    """Average single-answer judgments as FastChat does: over all (question, turn), by turn and by category.

    Ratings of -1 are dropped. The interval is a percentile bootstrap (Efron, 1979) that draws whole questions, since
    the turns of one depend on each other.

    Args:
        judgments: rows of FastChat's judgment file: ``question_id``, ``turn``, ``score``.
        categories: of the questions; None: by number (:func:`category_of`).
        confidence: of the intervals, in (0, 1).
        resamples: of the bootstrap.
        seed: of the bootstrap.

    Returns:
        The whole, then category by category in order of appearance, each over both turns and by turn.
    """
    known = {
        row["question_id"]: (categories or {}).get(row["question_id"]) or category_of(row["question_id"])
        for row in judgments
    }
    names = list(dict.fromkeys(name for name in known.values() if name is not None))
    turns = sorted({int(row["turn"]) for row in judgments})
    scores = []
    for category in ("all", *names):
        rows = [row for row in judgments if category in ("all", known[row["question_id"]])]
        for turn in ("both", *turns):
            part = [row for row in rows if turn in ("both", row["turn"])]
            if part:
                rng = np.random.default_rng(seed)
                scores.append(_score(category, str(turn), part, confidence, resamples, rng))
    return scores


def _score(
    category: str,
    turn: str,
    rows: Sequence[Mapping[str, Any]],
    confidence: float,
    resamples: int,
    rng: np.random.Generator,
) -> MeanRating:
    ratings: dict[QuestionId, list[float]] = defaultdict(list)
    for row in rows:
        if row["score"] != UNREADABLE:
            ratings[row["question_id"]].append(row["score"])
    count = sum(map(len, ratings.values()))
    unreadable = len(rows) - count
    if not count:
        return MeanRating(category, turn, None, None, None, 0, 0, unreadable)
    sums, counts = np.asarray([(sum(values), len(values)) for values in ratings.values()], dtype=np.float64).T
    mean = float(sums.sum() / counts.sum())
    if len(sums) < 2:
        return MeanRating(category, turn, mean, None, None, len(sums), count, unreadable)
    drawn = rng.integers(0, len(sums), (resamples, len(sums)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return MeanRating(category, turn, mean, float(low), float(high), len(sums), count, unreadable)


def read_judgments(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Read FastChat's ``model_judgment/*_single.jsonl``: {model: rows of question_id, turn, score and judge}.

    Raises:
        UserError: naming the line that is not such a row.
    """
    models: dict[str, list[dict[str, Any]]] = defaultdict(list)
    try:
        lines = intact(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"judgments={path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            score = row["score"] if "score" in row else rating(row["judgment"])
            if isinstance(score, bool) or not isinstance(score, int | float):
                raise TypeError
            found = {"question_id": row["question_id"], "turn": int(row["turn"]), "score": score}
            models[row["model"]].append({**found, "judge": row.get("judge")})
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} line {number}: not a judgment (question_id, model, turn and score or judgment are needed)"
            ) from error
    return dict(models)
