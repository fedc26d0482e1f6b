"""Scores of an item's responses: ranks (paper), or the release's two responses and divided scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any, TypeVar

from reproalign.more.sources import Dialogue, Item

Response = TypeVar("Response")
Comparable = Callable[..., tuple[list[Any], list[float]] | None]
EPSILON = 1e-5  # added to the highest score before the released division


def dense_ranks(scores: Sequence[float]) -> list[float]:
    """Return each score's place among the different ones, the lowest 0: never negative, and all the loss reads."""
    places = {score: place for place, score in enumerate(sorted(set(scores)))}
    return [float(places[score]) for score in scores]


def prepare_released(texts: Sequence[Response], scores: Sequence[float]) -> tuple[list[Response], list[float]] | None:
    """Prepare an item as the release does (``prepare_data_item``).

    The first two responses alone are kept, the better one first (of two equal ones the second), their scores divided by
    (highest + 1e-5). A highest score that is not positive turns order or signs over, and the loss takes a negative
    score for padding (ERRATA Q8).

    Args:
        texts: the responses.
        scores: one each, higher is better.

    Returns:
        Responses and scores, or None for unequal numbers of both, which the release drops.
    """
    if len(texts) != len(scores):
        return None
    order = sorted(range(len(scores[:2])), key=lambda index: scores[index])[::-1]
    highest = max(scores[:2]) + EPSILON
    return [texts[i] for i in order], [scores[i] / highest for i in order]


def has_pair(scores: Sequence[float]) -> bool:
    """Say whether the ranking loss finds two responses to compare: of different scores, none of them negative."""
    return len({score for score in scores if score >= 0}) > 1


def ranked(texts: Sequence[Response], scores: Sequence[float]) -> tuple[list[Response], list[float]] | None:
    """Prepare an item as the paper does: all responses with :func:`dense_ranks`; None if no two can be compared."""
    ranks = dense_ranks(scores)
    return (list(texts), ranks) if has_pair(ranks) else None


def prepare(item: Item, comparable: Comparable) -> tuple[list[Dialogue], list[float]] | None:
    """Return responses and scores as the loss reads them; None for an item that is left out.

    Responses without a score are left out first, in both variants, and items with fewer than two others.

    Args:
        item: as its source has it.
        comparable: :func:`ranked`, or :func:`prepare_released`, where an item without a pair keeps its place
            (ERRATA Q17).
    """
    known = [(d, score) for d, score in zip(item.dialogues, item.scores, strict=True) if score is not None]
    if len(known) < 2:
        return None
    return comparable([d for d, _ in known], [score for _, score in known])


def count_ties(item: Item) -> tuple[int, int]:
    """Return how many pairs of scored responses an item has, and how many of them are tied."""
    pairs = [*combinations([score for score in item.scores if score is not None], 2)]
    return len(pairs), sum(a == b for a, b in pairs)


def best_is_first(item: Item) -> bool:
    """Say whether the first response, in the order of the source, has the highest score alone."""
    known = [score for score in item.scores if score is not None]
    return item.scores[0] is not None and all(score < known[0] for score in known[1:])
