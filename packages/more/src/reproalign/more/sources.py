r"""Sources: one function each from an original row to an item, that is a prompt's responses and their scores.

To add one, write the function, give it a docstring that names the columns, and decorate it::

    @source("mydata", hub="me/mydata", splits=("train", "test"))
    def mydata(row):
        '''Columns: question, better, worse.'''
        return paired([user(row["question"])], row["better"], row["worse"])

A :class:`~reproalign.common.data.records.RowError` is reported with file and line. How the five published sets were
made is not released; ``ERRATA.md`` says what is our own definition.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from reproalign.common.data.records import Message, RowError, column, messages
from reproalign.common.data.sources import Home
from reproalign.common.data.sources.hh import parse_transcript
from reproalign.common.data.sources.preference import preference as from_preference
from reproalign.common.errors import choose

Dialogue = str | list[Message]  # whole, the response its last turn: a transcript "\n\nHuman: …", or messages
PAIRINGS = ("adjacent", "best-vs-rest", "all")
_ASSISTANT = "\n\nAssistant:"


@dataclass
class Item:
    """The dialogues that several responses make of one prompt, and their scores; higher is better, None: missing."""

    dialogues: list[Dialogue]
    scores: list[float | None]

    def prompt(self) -> str:
        """Return what tells this prompt from others."""
        first = self.dialogues[0]
        return first.rpartition(_ASSISTANT)[0] or first if isinstance(first, str) else str(first[:-1])

    def parsed(self) -> Item:
        """Return the item with its transcripts as messages.

        Raises:
            RowError: for a text that is no transcript from a Human's turn to an Assistant's.
        """
        return replace(
            self, dialogues=[parse_transcript(text) if isinstance(text, str) else text for text in self.dialogues]
        )


Collect = Callable[[list[Any], str], list[Item]]


@dataclass(frozen=True)
class Source(Home):
    """A registered source: its home on the Hub, what makes a row's part, and what makes items of the parts.

    An empty name of a split means that there is none; ``data.revisions`` overrules ``revision``.
    """

    to_part: Callable[[dict[str, Any]], Any]
    collect: Collect
    revision: str | None


SOURCES: dict[str, Source] = {}


def source(
    name: str,
    *,
    hub: str | None = None,
    splits: tuple[str, str] = ("train", "test"),
    data_dir: str | None = None,
    revision: str | None = None,
    collect: Collect = lambda parts, pairing: parts,
) -> Callable[[Callable[[dict[str, Any]], Any]], Callable[[dict[str, Any]], Any]]:
    """Register a function from original row to item (or to what ``collect`` takes) under ``name``."""

    def register(function: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
        SOURCES[name] = Source(name, hub, splits, function, collect, revision, data_dir=data_dir)
        return function

    return register


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


def paired(prompt: list[Message], chosen: str, rejected: str) -> Item:
    """Return the item of a pair: scores 1 and 0."""
    return make_item([[*prompt, assistant(text)] for text in (chosen, rejected)], [1, 0])


def user(content: str) -> Message:
    """Return a user's turn."""
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    """Return an assistant's turn."""
    return {"role": "assistant", "content": content}


def number(name: str, value: Any) -> float:
    """Return a finite number.

    Raises:
        RowError: for anything else.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RowError(f"{name}: {value!r} is not a finite number")
    return float(value)


@source("helpful", hub="Anthropic/hh-rlhf", data_dir="helpful-base")
def helpful(row: dict[str, Any]) -> Item:
    r"""Anthropic's helpful dialogues. Columns: chosen and rejected, transcripts of ``\n\nHuman: …`` and
    ``\n\nAssistant: …`` turns, taken as they stand.
    """
    return _transcripts(row)


@source("harmless", hub="Anthropic/hh-rlhf", data_dir="harmless-base")
def harmless(row: dict[str, Any]) -> Item:
    """Anthropic's harmless dialogues; columns as :func:`helpful` has them."""
    return _transcripts(row)


def rank_replies(parts: list[list[dict[str, Any]]], pairing: str) -> list[Item]:
    """Make items of the English replies that have one parent and a rank, under the dialogue that leads to it.

    Args:
        parts: messages; those without an English path from a root are left out.
        pairing: in the order of their ranks ``adjacent`` replies make an item of two, or the best one with each of the
            others (``best-vs-rest``), or ``all`` make one item. The score is the item's last rank less the reply's.
    """
    choose("data.oasst1_pairs", pairing, PAIRINGS)
    children: dict[str | None, list[dict[str, Any]]] = defaultdict(list)
    for node in (node for part in parts for node in part):
        if node["lang"] == "en":
            children[node["parent_id"]].append(node)
    items = []
    waiting: list[tuple[list[Message], dict[str, Any]]] = [([], root) for root in reversed(children[None])]
    while waiting:
        before, node = waiting.pop()
        turns = [*before, {"role": _OASST_ROLES[node["role"]], "content": node["text"]}]
        replies = children.get(node["message_id"], [])
        waiting += [(turns, reply) for reply in reversed(replies)]
        ranked = [reply for reply in replies if reply["role"] == "assistant" and reply["rank"] is not None]
        for group in _groups(sorted(ranked, key=lambda reply: float(reply["rank"])), pairing):
            dialogues: list[Dialogue] = [[*turns, assistant(reply["text"])] for reply in group]
            items.append(Item(dialogues, [group[-1]["rank"] - reply["rank"] for reply in group]))
    return items


_OASST_ROLES = {"prompter": "user", "assistant": "assistant"}


@source("oasst1", hub="OpenAssistant/oasst1", splits=("train", "validation"), collect=rank_replies)
def oasst1(row: dict[str, Any]) -> list[dict[str, Any]]:
    """OpenAssistant's dialogues. Columns of a message: message_id, parent_id (null: root), text, role (prompter or
    assistant), lang, rank (0 is best; null: not ranked). A row is a message, as on the Hub, or a tree: ``prompt`` is
    its root, and every message has ``replies``. See :func:`rank_replies`.
    """
    if isinstance(row.get("prompt"), dict):
        return [*_walk(row["prompt"])]
    return [_message(row, row.get("parent_id"))]


@source("webgpt", hub="openai/webgpt_comparisons", splits=("train", ""), revision="refs/convert/parquet")
def webgpt(row: dict[str, Any]) -> Item:
    """OpenAI's WebGPT comparisons. Columns: question (with full_text), answer_0, answer_1, score_0, score_1 (-1 to 1).

    Scores are raised by 1: the released normalisation would take the negative ones for padding. Ties have equal ones,
    and are set aside.
    """
    question = _text(column(row, "question"), "full_text", "question.")
    scores = [number(name, column(row, name)) + 1 for name in ("score_0", "score_1")]
    return make_item([[user(question), assistant(_text(row, name))] for name in ("answer_0", "answer_1")], scores)


@source(
    "summarize",
    hub="openai/summarize_from_feedback",
    splits=("train", "validation"),
    data_dir="comparisons",
    revision="refs/convert/parquet",
)
def summarize(row: dict[str, Any]) -> Item:
    """OpenAI's comparisons of summaries. Columns: info (with post, title and subreddit, or article), summaries (two,
    each with text), choice (index of the better one). The prompt is the query of Stiennon et al. (2020), with TL;DR.
    """
    info, summaries, choice = column(row, "info"), column(row, "summaries"), column(row, "choice")
    if not isinstance(summaries, list) or len(summaries) != 2 or choice not in (0, 1):
        raise RowError("there must be two 'summaries', and 'choice' must be 0 or 1")
    if info.get("post"):
        query = f"SUBREDDIT: r/{info.get('subreddit')}\n\nTITLE: {info.get('title')}\n\nPOST: {info['post']}"
    else:
        query = _text(info, "article", "info.")
    texts = [_text(summary, "text", "summaries.").strip() for summary in summaries]
    return paired([user(f"{query}\n\nTL;DR:")], texts[choice], texts[1 - choice])


@source("text-score")
def text_score(row: dict[str, Any]) -> Item:
    r"""The release's items. Columns: text (list of transcripts ``\n\nHuman: …\n\nAssistant: …``), score (list of
    numbers, higher is better; null: missing).
    """
    texts = column(row, "text")
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise RowError("'text' must be a list of text")
    return make_item([*texts], _list(row, "score"))


@source("responses")
def responses(row: dict[str, Any]) -> Item:
    """Records of ``more-rm score``. Columns: prompt (text or messages), responses (list of text), scores (list of
    numbers, higher is better; null: missing).
    """
    prompt = column(row, "prompt")
    turns = [user(prompt)] if isinstance(prompt, str) else messages(row, "prompt")
    texts = _list(row, "responses")
    if not all(isinstance(text, str) for text in texts):
        raise RowError("'responses' must be a list of text")
    return make_item([[*turns, assistant(text)] for text in texts], _list(row, "scores"))


@source("preference")
def preference(row: dict[str, Any]) -> Item:
    """Pairs in TRL's preference format; columns as :func:`reproalign.common.data.sources.preference` has them."""
    record: Any = from_preference(row)
    prompt, *sides = (record[name] for name in ("prompt", "chosen", "rejected"))
    turns = [user(prompt)] if isinstance(prompt, str) else prompt
    return paired(turns, *(side if isinstance(side, str) else side[-1]["content"] for side in sides))


# What tells the rows of these sources, whatever their domain is called.
COLUMNS = {
    "text-score": {"text", "score"},
    "responses": {"responses", "scores"},
    "preference": {"chosen", "rejected"},
}


def source_of(domain: str, columns: set[str]) -> str | None:
    """Return the source that reads rows of ``columns``: the generic one that fits, else the domain's own name."""
    fitting = [name for name, needed in COLUMNS.items() if needed <= columns]
    if domain in SOURCES:  # whose own rows may well have chosen and rejected
        return next((name for name in fitting if name != "preference"), domain)
    return fitting[0] if fitting else None


def _transcripts(row: dict[str, Any]) -> Item:
    return make_item([_text(row, "chosen"), _text(row, "rejected")], [1, 0])


def _groups(ranked: list[dict[str, Any]], pairing: str) -> list[list[dict[str, Any]]]:
    if len(ranked) < 2:
        return []
    if pairing == "adjacent":
        return [list(pair) for pair in pairwise(ranked)]
    if pairing == "best-vs-rest":
        return [[ranked[0], other] for other in ranked[1:]]
    return [ranked]


def _walk(root: dict[str, Any]) -> Iterator[dict[str, Any]]:
    waiting: list[tuple[Any, str | None]] = [(root, None)]
    while waiting:
        node, parent = waiting.pop(0)
        if not isinstance(node, dict):
            raise RowError("'replies' must be a list of messages")
        yield _message(node, parent)
        waiting += [(reply, node["message_id"]) for reply in node.get("replies") or []]


def _message(row: dict[str, Any], parent: str | None) -> dict[str, Any]:
    node: dict[str, Any] = {name: _text(row, name) for name in ("message_id", "text", "role", "lang")}
    if node["role"] not in _OASST_ROLES:
        raise RowError(f"role={node['role']!r} must be prompter or assistant")
    if not node["text"].strip():
        raise RowError("'text' is empty")
    rank = row.get("rank")
    return {**node, "parent_id": parent, "rank": None if rank is None else number("rank", rank)}


def _response(dialogue: Dialogue) -> str:
    return dialogue.rpartition(_ASSISTANT)[2] if isinstance(dialogue, str) else dialogue[-1]["content"]


def _list(row: dict[str, Any], name: str) -> list[Any]:
    value = column(row, name)
    if not isinstance(value, list):
        raise RowError(f"'{name}' must be a list")
    return value


def _text(row: Any, name: str, prefix: str = "") -> str:
    if not isinstance(row, dict):
        raise RowError(f"'{prefix.rstrip('.')}' must be an object with '{name}'")
    value = column(row, name)
    if not isinstance(value, str):
        raise RowError(f"'{prefix}{name}' must be text")
    return value
