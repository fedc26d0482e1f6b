"""From scored responses to D_θ: the candidates, the best of them, and a draw of those."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reproalign.common.data.records import Message
from reproalign.common.generation.filters import is_discarded
from reproalign.common.generation.samples import Sampled


@dataclass(frozen=True)
class Quality:
    """Which responses are candidates.

    Attributes:
        discard: the rule by which some are not: ``none`` | ``lmflow``.
        min_length: characters, without surrounding white space.
        dedup: of equal dialogues the one of the highest reward, the first of equal ones.
        excluded: prompts, as :func:`prompt_key` names them, whose responses are none.
    """

    discard: str = "none"
    min_length: int = 1
    dedup: bool = True
    excluded: Collection[str] = ()


def prompt_key(prompt: Sequence[Message]) -> str:
    """Return what equal prompts have in common: roles and texts, white space and case aside."""
    return json.dumps([[turn["role"], " ".join(turn["content"].lower().split())] for turn in prompt])


def candidates(rows: Sequence[Sampled], quality: Quality) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Return all candidates, in order of the rows and of their responses, and how many others there are and why.

    Args:
        rows: scored.
        quality: what makes a candidate.

    Returns:
        Rows in the form of ``selected.jsonl``: id, prompt, messages, reward, index (of the response); and counts.
    """
    found: list[dict[str, Any]] = []
    counts = dict.fromkeys(("excluded", "discarded", "too_short", "duplicates"), 0)
    best: dict[str, int] = {}
    for row in rows:
        assert row.scores is not None
        if prompt_key(row.prompt) in quality.excluded:
            counts["excluded"] += len(row.responses)
            continue
        for index, (text, reward) in enumerate(zip(row.responses, row.scores, strict=True)):
            if is_discarded(text, quality.discard):
                counts["discarded"] += 1
            elif len(text.strip()) < quality.min_length:
                counts["too_short"] += 1
            else:
                turns = [*row.prompt, {"role": "assistant", "content": text}]
                made = {"id": row.id, "prompt": row.prompt, "messages": turns, "reward": reward, "index": index}
                place = best.setdefault(json.dumps(turns), len(found)) if quality.dedup else len(found)
                if place == len(found):
                    found.append(made)
                    continue
                counts["duplicates"] += 1
                if reward > found[place]["reward"]:
                    found[place] = made
    return found, counts


def draw_best(found: Sequence[dict[str, Any]], top: int, draw: int, seed: int) -> list[dict[str, Any]]:
    """Return D_θ (eq. 8): ``draw`` of the ``top`` candidates of the highest reward, from the highest down.

    Candidates are sorted by reward, equal ones by their place; of the first ``top``, ``draw`` are drawn without
    replacement by ``numpy.random.default_rng(seed)``. Where there are fewer, all of them are taken.
    """
    order = sorted(range(len(found)), key=lambda place: -found[place]["reward"])[:top]
    drawn = np.random.default_rng(seed).choice(len(order), size=min(draw, len(order)), replace=False)
    return [found[order[place]] for place in sorted(drawn.tolist())]
