"""All that is known of a prompt, as Ra-DPO's release keeps it: its rules for each data set on the core's records.

A prompt's responses stand together, whichever rows they came from. Rows with an empty response, or with twice the same
one, are bad rows: they hold no preference (the release trains on them, ERRATA Q22).
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from reproalign.common.data.records import (
    Message,
    Prompt,
    RowError,
    assistant,
    check_messages,
    check_scores,
    make_record,
    user,
)
from reproalign.common.data.sources import Source
from reproalign.common.data.sources.oasst1 import english
from reproalign.common.data.views import View, parsed

MIN_SCORE_RATIO = 2  # SHP, training rows
MAX_SHP_PAIRS = 5  # per prompt, training rows
KEEP_START = ("shp", "ultrafeedback", "ultrabin", "ultrafeedback_hybrid", "imdb")  # the end of a long prompt is lost


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


def examples_view(*, any_pair: bool = False) -> View[Example, Example]:
    """Return the view of prompts as examples; see :func:`examples_of`."""
    return View(partial(examples_of, any_pair=any_pair), lambda example: example.key, collect)


def examples_of(prompt: Prompt, source: Source, *, any_pair: bool = False) -> list[Example]:
    """Return the example of a prompt; of a tree's prompt one for each pair of its replies.

    Args:
        prompt: of the data set.
        source: says its rule.
        any_pair: keep pairs that hold no preference (ERRATA Q22).

    Raises:
        RowError: if the rule of its data set has no use for it.
    """
    if source.gather:
        return _linked(prompt)
    example = RULES.get(source.name, _paired)(prompt, source.name)
    if not any_pair and source.name != "imdb":
        for pair in example.pairs:
            make_record(example.prompt, *([assistant(example.generations[index])] for index in pair))
    return [example]


def collect(parts: list[Example], source: Source, train: bool) -> list[Example]:
    """Join the examples of each prompt by the rule of their data set."""
    if source.gather:
        parts = sorted(parts, key=lambda part: part.sft_index)
    if source.name == "shp" and train:
        return list(pick_shp(parts).values())
    examples = merge(parts)
    for example in examples.values():
        if source.gather:  # SFT is on the generation of the lowest rank
            example.sft_index, example.released_sft_index = example.scores.index(min(example.scores)), -1
        elif source.name.startswith("ultra") and example.pairs:  # the release: the chosen response of its last pair
            example.released_sft_index = example.pairs[-1][0]
    return list(examples.values())


def merge(parts: Iterable[Example]) -> Examples:
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


def pick_shp(parts: list[Example]) -> Examples:
    """Of training rows keep those whose votes differ by a factor of 2, and at most 5 pairs a prompt."""
    examples = merge(part for part in parts if max(part.scores) >= MIN_SCORE_RATIO * min(part.scores))
    for example in examples.values():
        example.pairs = random.Random(0).sample(example.pairs, min(MAX_SHP_PAIRS, len(example.pairs)))
    return examples


def _hh(prompt: Prompt, name: str) -> Example:
    r"""Turns of ``chosen`` alternate between user and assistant, whoever is named; the last one is the chosen response.
    The rejected one is what follows the last ``\n\nAssistant: `` of ``rejected``.
    """
    opening, *turns = re.split(r"\n\nHuman: |\n\nAssistant: ", prompt.transcripts[0])
    _, marker, rejected = prompt.transcripts[1].rpartition("\n\nAssistant: ")
    if opening.strip() or len(turns) < 2 or not marker:
        raise RowError("'chosen' and 'rejected' must be transcripts of '\\n\\nHuman: ' and '\\n\\nAssistant: ' turns")
    roles = ("user", "assistant")
    dialogue = [{"role": roles[n % 2], "content": words.strip()} for n, words in enumerate(turns)]
    generations = [dialogue[-1]["content"], rejected.strip()]
    return Example(_key(dialogue[:-1]), dialogue[:-1], generations, name, [(0, 1)])


def _shp(prompt: Prompt, name: str) -> Example:
    """Scores are votes. SFT is on the first answer: which of all is best cannot be told."""
    label = prompt.extras["labels"]
    if label not in (0, 1):
        raise RowError(f"labels={label!r} must be 1 (A is preferred) or 0")
    if min(prompt.scores) <= 0:
        raise RowError("score_A and score_B must be positive")
    example = _paired(prompt, name)
    example.pairs = [(0, 1) if label == 1 else (1, 0)]
    example.original_prompt = prompt.turns()[0]["content"]
    return example


def _characters(prompt: Prompt, name: str) -> Example:
    """The last but one character of a text is preferred to the last (ERRATA Q6), be they equal or blank.

    All of the text is the prompt, of which the beginning survives.
    """
    text = str(prompt.messages)
    if len(text) < 2:
        raise RowError("'text' must have two characters at least")
    return Example(text, [user(text)], [text[-2], text[-1]], name, [(0, 1)], truncation_mode="keep_start")


def _target(prompt: Prompt, name: str) -> Example:
    """A dialogue without preferences: its last turn, an assistant's, is the target of SFT."""
    dialogue = check_messages([*prompt.turns(), *prompt.responses[0]], "messages")
    *before, last = dialogue
    if not before or last["role"] != "assistant" or not last["content"].strip():
        raise RowError("'messages' must end with an answer of the assistant, after a turn of the user")
    return Example(_key(before), before, [last["content"]], name)


def _instruction(prompt: Prompt, name: str) -> Example:
    """An instruction with its output; the name is the part of the data set that it is of."""
    turns = prompt.turns()
    text = turns[0]["content"]
    return Example(_key(turns), turns, [prompt.answer(0)], str(prompt.domain or name), original_prompt=text)


def _paired(prompt: Prompt, name: str) -> Example:
    """Responses as text, the key of the prompt its turns joined by a space; pairs and scores as the data set has them.

    Text stands for one turn of the user and one of the assistant.
    """
    prompt = parsed(prompt)
    turns = prompt.turns()
    if not prompt.pairs and len(prompt.responses) == 1:
        return _target(prompt, name)
    for index, response in enumerate(prompt.responses):
        if not isinstance(response, str) and response[-1]["role"] != "assistant":
            side = ("'chosen'", "'rejected'")[index] if prompt.pairs else "a response"
            raise RowError(f"{side} must end with an assistant message")
    if len(prompt.scores) == 2:
        check_scores(*prompt.scores)
    mode = "keep_start" if name in KEEP_START else "keep_end"
    scores = [] if None in prompt.scores else [float(score) for score in prompt.scores if score is not None]
    generations = [prompt.answer(index) for index in range(len(prompt.responses))]
    return Example(_key(turns), turns, generations, name, prompt.preferences(), scores, truncation_mode=mode)


def _linked(prompt: Prompt) -> list[Example]:
    """Pair every English reply of rank r >= 1 with the first sibling of rank r - 1, under the path from the root.

    A reply with the very text of that sibling gives no pair. Scores are ranks, lower is better. Until they are
    collected, ``sft_index`` is the place of the worse reply among all messages.
    """
    examples = []
    for found in english([prompt]):
        ranks = [None if score is None else -score for score in found.scores]
        first = {rank: place for place, rank in reversed([*enumerate(ranks)])}
        for place, rank in enumerate(ranks):
            better = first.get(rank - 1) if rank else None
            if better is not None and found.answer(better) != found.answer(place):
                generations = [found.answer(better), found.answer(place)]
                turns = found.turns()
                examples.append(
                    Example(
                        json.dumps(turns),
                        turns,
                        generations,
                        "oasst1",
                        [(0, 1)],
                        [ranks[better], ranks[place]],  # type: ignore[list-item]
                        sft_index=found.extras["rows"][place],
                    )
                )
    return examples


RULES: dict[str, Callable[[Prompt, str], Example]] = {
    "hh": _hh,
    "hh_helpful": _hh,
    "hh_harmless": _hh,
    "shp": _shp,
    "imdb": _characters,
    "alpacaeval": _instruction,
}


def _squeeze(text: str) -> str:
    return re.sub(r"[ \t]{2,}", " ", text)


def _key(prompt: list[Any]) -> str:
    return " ".join(turn["content"] for turn in prompt)
