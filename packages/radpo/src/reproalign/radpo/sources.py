"""Sources: one function each from a public data set's original row to an example, and how rows of a prompt are joined.

To add one, write the function, give it a docstring that names the columns, and decorate it::

    @source("mydata", hub="me/mydata", splits=("train", "test"))
    def mydata(row):
        '''Columns: question, better, worse.'''
        return paired("mydata", [user(row["question"])], row["better"], row["worse"])

Rows with an empty response, or with twice the same one, are bad rows: they hold no preference (:func:`checked`; the
release trains on them, ERRATA Q22). A :class:`~reproalign.common.data.records.RowError` is reported with file and line.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from reproalign.common.data.records import Message, RowError, column, make_record, messages
from reproalign.common.data.sources import Home
from reproalign.common.data.sources.preference import preference as from_preference
from reproalign.common.data.sources.shp import order_answers

MIN_SCORE_RATIO = 2  # SHP, training rows
MAX_SHP_PAIRS = 5  # per prompt, training rows


@dataclass
class Example:
    """All that is known about one prompt; runs of spaces and tabs in it are squeezed to one space."""

    key: str  # rows with equal keys belong to one prompt
    prompt: list[Message]
    generations: list[str]
    name: str
    pairs: list[tuple[int, int]] = field(default_factory=list)  # (i, j): generation i is preferred to j
    scores: list[float] = field(default_factory=list)  # one a generation, on the data set's own scale; or none
    sft_index: int = 0
    released_sft_index: int = 0  # what the release trains on (ERRATA Q22)
    truncation_mode: str = "keep_end"  # which end of an over-long prompt survives: keep_end | keep_start
    original_prompt: str = ""

    def __post_init__(self) -> None:
        self.prompt = [{**turn, "content": _squeeze(turn["content"])} for turn in self.prompt]
        self.generations = [_squeeze(text) for text in self.generations]


Examples = dict[str, Example]
Collect = Callable[[list[Any], bool], Examples]


@dataclass(frozen=True)
class Source(Home):
    """A registered source: its home on the Hub, what makes a row's part, and what joins the parts."""

    to_part: Callable[[dict[str, Any]], Any]
    collect: Collect  # (parts, whether this is the training split) -> examples
    evaluation_only: bool
    any_pair: bool = False  # pairs need not be preferences: see :func:`checked`


SOURCES: dict[str, Source] = {}


def merge(parts: Iterable[Example], train: bool) -> Examples:
    """Join the examples of one prompt: generations, scores and pairs of all of them, the rest of the first."""
    merged: Examples = {}
    for part in parts:
        known = merged.setdefault(part.key, part)
        if known is not part:
            offset = len(known.generations)
            known.generations += part.generations
            known.scores += part.scores
            known.pairs += [(i + offset, j + offset) for i, j in part.pairs]
    return merged


def merge_latest(parts: Iterable[Example], train: bool) -> Examples:
    """Join the examples of one prompt; the release's SFT is on the chosen response of its last pair."""
    merged = merge(parts, train)
    for example in merged.values():
        example.released_sft_index = example.pairs[-1][0]
    return merged


def checked(to_part: Callable[[dict[str, Any]], Any], row: dict[str, Any]) -> Any:
    """Return the part that ``to_part`` makes of a row.

    Raises:
        RowError: as ``to_part`` does, and for a pair with an empty response or of two equal ones.
    """
    part = to_part(row)
    if isinstance(part, Example):
        for pair in part.pairs:
            make_record(part.prompt, *([assistant(part.generations[index])] for index in pair))
    return part


def cap_pairs(examples: Examples, limit: int) -> None:
    """Keep at most ``limit`` pairs of each prompt, drawn by ``random.Random(0).sample``."""
    for example in examples.values():
        example.pairs = random.Random(0).sample(example.pairs, min(limit, len(example.pairs)))


def source(
    name: str,
    *,
    hub: str | None = None,
    splits: tuple[str, str] = ("train", "test"),
    data_dir: str | None = None,
    collect: Collect = merge,
    evaluation_only: bool = False,
    any_pair: bool = False,
) -> Callable[[Callable[[dict[str, Any]], Any]], Callable[[dict[str, Any]], Any]]:
    """Register a function from original row to example (or to what ``collect`` takes) under ``name``."""

    def register(function: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
        SOURCES[name] = Source(name, hub, splits, function, collect, evaluation_only, any_pair, data_dir=data_dir)
        return function

    return register


def user(content: str) -> Message:
    """Return a user's turn."""
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    """Return an assistant's turn."""
    return {"role": "assistant", "content": content}


def paired(name: str, prompt: list[Message], chosen: str, rejected: str, **more: Any) -> Example:
    """Return the example of one pair; its key is the prompt's turns, joined by a space."""
    return Example(_key(prompt), prompt, [chosen, rejected], name, [(0, 1)], **more)


@source("hh", hub="Anthropic/hh-rlhf")
def hh(row: dict[str, Any]) -> Example:
    r"""Anthropic's helpful and harmless dialogues. Columns: chosen and rejected, transcripts of ``\n\nHuman: …`` and
    ``\n\nAssistant: …`` turns.

    Turns of ``chosen`` alternate between user and assistant, whoever is named; the last one is the chosen response. The
    rejected one is what follows the last ``\n\nAssistant: `` of ``rejected``.
    """
    return _hh(row, "hh")


@source("hh_helpful", hub="Anthropic/hh-rlhf", data_dir="helpful-base")
def hh_helpful(row: dict[str, Any]) -> Example:
    """The folder helpful-base of :func:`hh`."""
    return _hh(row, "hh_helpful")


@source("hh_harmless", hub="Anthropic/hh-rlhf", data_dir="harmless-base")
def hh_harmless(row: dict[str, Any]) -> Example:
    """The folder harmless-base of :func:`hh`."""
    return _hh(row, "hh_harmless")


def _hh(row: dict[str, Any], name: str) -> Example:
    opening, *turns = re.split(r"\n\nHuman: |\n\nAssistant: ", _text(row, "chosen"))
    _, marker, rejected = _text(row, "rejected").rpartition("\n\nAssistant: ")
    if opening.strip() or len(turns) < 2 or not marker:
        raise RowError("'chosen' and 'rejected' must be transcripts of '\\n\\nHuman: ' and '\\n\\nAssistant: ' turns")
    roles = ("user", "assistant")
    dialogue = [{"role": roles[n % 2], "content": words.strip()} for n, words in enumerate(turns)]
    return paired(name, dialogue[:-1], dialogue[-1]["content"], rejected.strip())


def pick_shp(parts: list[Example], train: bool) -> Examples:
    """Of training rows keep those whose votes differ by a factor of 2, and at most 5 pairs a prompt."""
    if not train:
        return merge(parts, train)
    examples = merge((part for part in parts if max(part.scores) >= MIN_SCORE_RATIO * min(part.scores)), train)
    cap_pairs(examples, MAX_SHP_PAIRS)
    return examples


@source("shp", hub="stanfordnlp/SHP", collect=pick_shp)
def shp(row: dict[str, Any]) -> Example:
    """Stanford Human Preferences. Columns: history, human_ref_A and _B (text), score_A and _B (votes), labels (1: A is
    preferred). Scores are votes. SFT is on the first answer: which of all is best cannot be told.
    """
    history, *_ = order_answers(row)
    votes, label = [float(row["score_A"]), float(row["score_B"])], column(row, "labels")
    if label not in (0, 1):
        raise RowError(f"labels={label!r} must be 1 (A is preferred) or 0")
    if min(votes) <= 0:
        raise RowError("score_A and score_B must be positive")
    options: dict[str, Any] = {"scores": votes, "truncation_mode": "keep_start", "original_prompt": history}
    example = paired("shp", [user(history)], row["human_ref_A"], row["human_ref_B"], **options)
    example.pairs = [(0, 1) if label == 1 else (1, 0)]
    return example


def link_replies(parts: list[dict[str, Any]], train: bool) -> Examples:
    """Pair every English reply of rank r >= 1 with the first sibling of rank r - 1, under the path from the root.

    Replies without such a sibling or with its very text, and those with a missing turn on the path, give no pair.
    Scores are ranks, lower is better; SFT is on the generation of the lowest rank.
    """
    english = [part for part in parts if part["lang"] == "en"]
    by_id = {part["message_id"]: part for part in english}
    ranked: dict[tuple[Any, Any], dict[str, Any]] = {}
    for part in english:
        ranked.setdefault((part["parent_id"], part["rank"]), part)
    pairs = []
    for part in english:
        better = ranked.get((part["parent_id"], part["rank"] - 1)) if part["rank"] else None
        path = _path(part["parent_id"], by_id) if better else []
        if better and path and better["text"] != part["text"]:
            turns = [{"role": _OASST_ROLES[node["role"]], "content": node["text"]} for node in path]
            example = paired("oasst", turns, better["text"], part["text"], scores=[better["rank"], part["rank"]])
            example.key = json.dumps(turns)
            pairs.append(example)
    examples = merge(pairs, train)
    for example in examples.values():
        example.sft_index, example.released_sft_index = example.scores.index(min(example.scores)), -1
    return examples


_OASST_ROLES = {"prompter": "user", "assistant": "assistant"}


@source("oasst", hub="OpenAssistant/oasst1", splits=("train", "validation"), collect=link_replies)
def oasst(row: dict[str, Any]) -> dict[str, Any]:
    """OpenAssistant's dialogues, one message a row. Columns: message_id, parent_id (null: root), text, role (prompter
    or assistant), lang, rank (0 is best; null: not ranked). See :func:`link_replies`.
    """
    part: dict[str, Any] = {name: _text(row, name) for name in ("message_id", "text", "role", "lang")}
    rank = row.get("rank")
    if part["role"] not in _OASST_ROLES:
        raise RowError(f"role={part['role']!r} must be prompter or assistant")
    if not part["text"].strip():
        raise RowError("'text' is empty")
    return {**part, "parent_id": row.get("parent_id"), "rank": None if rank is None else _number("rank", rank)}


def _path(node: Any, by_id: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the messages from the root down to ``node``; none if one of them is missing, or its own ancestor."""
    path: list[dict[str, Any]] = []
    while node is not None:
        if node not in by_id or len(path) > len(by_id):
            return []
        path.insert(0, by_id[node])
        node = by_id[node]["parent_id"]
    return path


@source(
    "ultrabin", hub="HuggingFaceH4/ultrafeedback_binarized", splits=("train_prefs", "test_prefs"), collect=merge_latest
)
def ultrabin(row: dict[str, Any]) -> Example:
    """UltraFeedback, binarised. Columns: chosen and rejected (messages, an assistant's last), optionally score_chosen
    and score_rejected (or chosen_rating and rejected_rating). The prompt is all but the last turn of ``chosen``.
    """
    return _ultrafeedback(row, "ultrabin")


@source("ultrafeedback_hybrid", hub="wzhouad/gemma-2-ultrafeedback-hybrid", collect=merge_latest)
def ultrafeedback_hybrid(row: dict[str, Any]) -> Example:
    """As :func:`ultrabin`, with responses of Gemma 2."""
    return _ultrafeedback(row, "ultrafeedback_hybrid")


def _ultrafeedback(row: dict[str, Any], name: str) -> Example:
    chosen, rejected = messages(row, "chosen"), messages(row, "rejected")
    if len(chosen) < 2:
        raise RowError("'chosen' has no turn before the response")
    for side, turns in (("chosen", chosen), ("rejected", rejected)):
        if turns[-1]["role"] != "assistant":
            raise RowError(f"'{side}' must end with an assistant message")
    rated = row.get("score_chosen") is None and row.get("score_rejected") is None
    names = ("chosen_rating", "rejected_rating") if rated else ("score_chosen", "score_rejected")
    scores = [_number(score, row[score]) for score in names if row.get(score) is not None]
    if len(scores) == 1:
        raise RowError(f"only one of {names[0]} and {names[1]} is given; give both or neither")
    options: dict[str, Any] = {"scores": scores, "truncation_mode": "keep_start"}
    return paired(name, chosen[:-1], chosen[-1]["content"], rejected[-1]["content"], **options)


@source("preference")
def preference(row: dict[str, Any]) -> Example:
    """Your own pairs in TRL's preference format; columns as :func:`reproalign.common.data.sources.preference` has them.

    Text stands for one turn of the user and one of the assistant.
    """
    record: Any = from_preference(row)
    prompt, *sides = (record[name] for name in ("prompt", "chosen", "rejected"))
    turns = [user(prompt)] if isinstance(prompt, str) else prompt
    texts = [side if isinstance(side, str) else side[-1]["content"] for side in sides]
    scores = [record[score] for score in ("score_chosen", "score_rejected") if record.get(score) is not None]
    return paired("preference", turns, *texts, scores=scores)


@source("ultrachat", hub="HuggingFaceH4/ultrachat_200k", splits=("train_sft", "test_sft"))
def ultrachat(row: dict[str, Any]) -> Example:
    """Dialogues without preferences, for SFT. Column: messages; the last one, an assistant's, is the target."""
    *prompt, last = messages(row, "messages")
    if not prompt or last["role"] != "assistant" or not last["content"].strip():
        raise RowError("'messages' must end with an answer of the assistant, after a turn of the user")
    return Example(_key(prompt), prompt, [last["content"]], "ultrachat")


@source("imdb_characters", hub="stanfordnlp/imdb", any_pair=True)
def imdb_characters(row: dict[str, Any]) -> Example:
    """Film reviews as the release reads them: the last but one character is preferred to the last (ERRATA Q6).

    Column: text. All of the review is the prompt, of which the beginning survives; the two characters are the
    responses, be they equal or blank.
    """
    text = _text(row, "text")
    if len(text) < 2:
        raise RowError("'text' must have two characters at least")
    return Example(text, [user(text)], [text[-2], text[-1]], "imdb_characters", [(0, 1)], truncation_mode="keep_start")


@source("imdb_sentiment", hub="insub/imdb_prefix20_forDPO_gpt2-large-imdb-FT_siebert_sentiment-roberta-large-english")
def imdb_sentiment(row: dict[str, Any]) -> Example:
    """Beginnings of film reviews, each with two continuations that a sentiment classifier ranked (ERRATA Q6).

    Columns: text (the beginning), chosen and rejected, which repeat it. ``radpo pairs`` makes such rows.
    """
    text = _text(row, "text")
    sides = [_text(row, name) for name in ("chosen", "rejected")]
    for name, side in zip(("chosen", "rejected"), sides, strict=True):
        if not side.startswith(text):
            raise RowError(f"'{name}' must begin with 'text'")
    return paired("imdb_sentiment", [user(text)], *(side.removeprefix(text).strip() for side in sides))


@source("alpacaeval", hub="tatsu-lab/alpaca_eval", splits=("eval", "eval"), evaluation_only=True)
def alpacaeval(row: dict[str, Any]) -> Example:
    """AlpacaEval's instructions, for evaluation only. Columns: instruction, output, dataset (kept as the name)."""
    instruction, output = _text(row, "instruction"), _text(row, "output")
    prompt, name = [user(instruction)], str(row.get("dataset") or "alpacaeval")
    return Example(_key(prompt), prompt, [output], name, original_prompt=instruction)


def _squeeze(text: str) -> str:
    return re.sub(r"[ \t]{2,}", " ", text)


def _key(prompt: list[Message]) -> str:
    return " ".join(turn["content"] for turn in prompt)


def _text(row: dict[str, Any], name: str) -> str:
    value = column(row, name)
    if not isinstance(value, str):
        raise RowError(f"'{name}' must be text")
    return value


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RowError(f"{name}: {value!r} is not a finite number")
    return float(value)
