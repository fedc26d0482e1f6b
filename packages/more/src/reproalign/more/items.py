"""Items: a prompt's responses with scores. How a data set's prompts become items, and what their scores become: ranks
(paper), or the release's two responses and divided scores. How the five published sets were made is not released;
``ERRATA.md`` says what is our own definition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, pairwise
from typing import Any, TypeVar

from reproalign.common.data.records import Message, Prompt, RowError, assistant, check_messages, number
from reproalign.common.data.sources import Source
from reproalign.common.data.sources.hh import parse_transcript
from reproalign.common.data.sources.oasst1 import english
from reproalign.common.data.views import View

Dialogue = str | list[Message]  # whole, the response its last turn: a transcript "\n\nHuman: …", or messages
_ASSISTANT = "\n\nAssistant:"
_RAISED = {"webgpt": 1.0}  # source -> added to its scores: the released normalisation takes negative ones for padding
Response = TypeVar("Response")
Comparable = Callable[..., tuple[list[Any], list[float]] | None]
EPSILON = 1e-5  # added to the highest score before the released division


@dataclass
class Item:
    """The dialogues that several responses make of one prompt, and their scores; higher is better, None: missing."""

    dialogues: list[Dialogue]
    scores: list[float | None]

    def prompt(self) -> str:
        """Return what tells this prompt from others."""
        first = self.dialogues[0]
        return first.rpartition(_ASSISTANT)[0] or first if isinstance(first, str) else str(first[:-1])


def items_view(pairing: str, *, layout: str) -> View[Item, Item]:
    """Return the view of prompts as items.

    Args:
        pairing: of OpenAssistant's replies, see :func:`rank_replies`.
        layout: of the reward model; ``chat`` reads messages, so that transcripts have to be such that they can be read.
    """
    return View(partial(items_of, pairing=pairing, chat=layout == "chat"), Item.prompt)


def items_of(prompt: Prompt, source: Source, *, pairing: str = "adjacent", chat: bool = False) -> list[Item]:
    """Return the items of a prompt: of a tree's prompt those of its ranked replies, of others one.

    Transcripts stand as they are. Of preferences the scores are 1 and 0, whatever else they are graded by.

    Raises:
        RowError: for a row without responses to compare, see also :func:`make_item`.
    """
    if source.gather:
        return [item for found in english([prompt]) for item in rank_replies(found, pairing)]
    scores = [1, 0] if prompt.pairs else prompt.scores
    order = [*prompt.pairs[0]] if prompt.pairs else [*range(len(prompt.transcripts or prompt.responses))]
    if not scores:
        raise RowError(f"source '{source.name}' has neither pairs nor scores in its rows; give data with preferences")
    if prompt.transcripts:
        texts = [prompt.transcripts[place] for place in order]
        dialogues: list[Dialogue] = [*map(parse_transcript, texts)] if chat else [*texts]
    else:
        before = check_messages(prompt.turns(), "prompt")
        dialogues = [[*before, assistant(prompt.answer(place))] for place in order]
    raised = _RAISED.get(source.name, 0.0)
    item = make_item(dialogues, scores)
    return [Item(item.dialogues, [None if score is None else score + raised for score in item.scores])]


def make_item(dialogues: list[Dialogue], scores: list[Any]) -> Item:
    """Check responses and scores and put them together.

    Raises:
        RowError: for unequal numbers of both, an empty response, responses that are all the same, or a score that is
            neither missing nor a finite number.
    """
    if len(dialogues) != len(scores):
        raise RowError(f"there are {len(dialogues)} responses but {len(scores)} scores")
    for dialogue in dialogues:
        if not _response(dialogue).strip():
            raise RowError("a response is empty; each needs some text")
    if len(dialogues) > 1 and all(dialogue == dialogues[0] for dialogue in dialogues):
        raise RowError("all responses are the same; different ones are needed")
    return Item(dialogues, [None if score is None else number("score", score) for score in scores])


def rank_replies(prompt: Prompt, pairing: str) -> list[Item]:
    """Make items of the ranked replies to a prompt.

    Args:
        prompt: scores are negative ranks; None: not ranked.
        pairing: in the order of their ranks ``adjacent`` replies make an item of two, or the best one with each of the
            others (``best-vs-rest``), or ``all`` make one item. The score is the item's last rank less the reply's.
    """
    known = [(-score, place) for place, score in enumerate(prompt.scores) if score is not None]
    items = []
    for group in _groups(sorted(known), pairing):
        dialogues: list[Dialogue] = [[*prompt.turns(), assistant(prompt.answer(place))] for _, place in group]
        items.append(Item(dialogues, [group[-1][0] - rank for rank, _ in group]))
    return items


def _groups(ranked: list[tuple[float, int]], pairing: str) -> list[list[tuple[float, int]]]:
    if len(ranked) < 2:
        return []
    if pairing == "adjacent":
        return [list(pair) for pair in pairwise(ranked)]
    if pairing == "best-vs-rest":
        return [[ranked[0], other] for other in ranked[1:]]
    return [ranked]


def _response(dialogue: Dialogue) -> str:
    return dialogue.rpartition(_ASSISTANT)[2] if isinstance(dialogue, str) else dialogue[-1]["content"]


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
