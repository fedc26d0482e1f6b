"""Selection by reward: of the scored responses to a prompt the best, or the best and the worst as a pair."""

from __future__ import annotations

import math
from typing import Any

from reproalign.common.data.records import Message
from reproalign.common.generation.best_of_n import best_of_n
from reproalign.common.generation.samples import Sampled


def best_row(row: Sampled, n: int) -> dict[str, Any] | None:
    """Return the dialogue with the best of the first n responses (the first of equals); None if that one is empty."""
    assert row.scores is not None
    index = int(best_of_n([row.scores], n).selected[0])
    if not row.responses[index].strip():
        return None
    answer = _answer(row.responses[index])
    return {
        "id": row.id,
        "prompt": row.prompt,
        "messages": [*row.prompt, *answer],
        "reward": row.scores[index],
        "index": index,
    }


def pair_row(row: Sampled, n: int) -> dict[str, Any] | None:
    """Return best and worst of the first n responses, with p_chosen = σ(r_chosen - r_rejected).

    None if they are equally good, or the same text, or one of them is empty.
    """
    assert row.scores is not None
    scores = row.scores[:n]
    best, worst = scores.index(max(scores)), scores.index(min(scores))
    texts = row.responses[best], row.responses[worst]
    if scores[best] == scores[worst] or texts[0] == texts[1] or not all(text.strip() for text in texts):
        return None
    return {
        "id": row.id,
        "prompt": row.prompt,
        "chosen": _answer(texts[0]),
        "rejected": _answer(texts[1]),
        "score_chosen": scores[best],
        "score_rejected": scores[worst],
        "p_chosen": 1 / (1 + math.exp(scores[worst] - scores[best])),  # the exponent is negative: no overflow
    }


def _answer(text: str) -> list[Message]:
    return [{"role": "assistant", "content": text}]
