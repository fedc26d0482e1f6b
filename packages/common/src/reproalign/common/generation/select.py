"""Selection by reward: of the scored responses to a prompt the best, or the best and the worst as a pair, or all."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from reproalign.common.data.records import Message
from reproalign.common.errors import UserError
from reproalign.common.generation.filters import is_discarded
from reproalign.common.generation.samples import Sampled


@dataclass(frozen=True)
class SelectionRules:
    """What is kept of a prompt's scored responses.

    Attributes:
        n: of the first n; None: of all.
        keep: ``best``, ``pairs`` (best and worst), or ``all`` responses with what each of them counts.
        discard: which responses are discarded: ``none``, or those that ``lmflow``'s rule names
            (:func:`~reproalign.common.generation.filters.is_discarded`).
        discard_reward: what a discarded response counts instead of its reward; None: it takes no part at all.
        min_reward: a prompt whose best response counts less than this is dropped; None: none is for that.

    Raises:
        UserError: for values that do not go together, naming the key.
    """

    n: int | None = None
    keep: str = "best"
    discard: str = "none"
    discard_reward: float | None = None
    min_reward: float | None = None

    def __post_init__(self) -> None:
        if self.discard == "none" and self.discard_reward is not None:
            raise UserError("discard_reward is of discarded responses, and discard=none names none; remove it")
        if self.keep == "all" and self.discard != "none" and self.discard_reward is None:
            raise UserError("keep=all keeps discarded responses too; set discard_reward to what they count, e.g. -5")

    def counted(self, row: Sampled) -> list[float | None]:
        """Return what each of the first n responses counts; None: it takes no part."""
        assert row.scores is not None
        pairs = list(zip(row.responses, row.scores, strict=True))[: self.n]
        return [self.discard_reward if is_discarded(text, self.discard) else score for text, score in pairs]


def select_row(row: Sampled, rules: SelectionRules) -> dict[str, Any] | None:
    """Return what is kept of a prompt; None if nothing is.

    ``best`` (MORE eq. 3, AMA R7): the dialogue with the best response, the first of equals; none if that one is empty,
    unless ``rules.discard`` decides on the empty ones. ``pairs``: best and worst, with p_chosen = σ(r_chosen -
    r_rejected); none if they are equally good, or the same text, or one of them is empty. ``all``: all responses.
    """
    counted = rules.counted(row)
    best = max((reward for reward in counted if reward is not None), default=None)
    if best is None or (rules.min_reward is not None and best < rules.min_reward):
        return None
    if rules.keep == "all":
        return {"id": row.id, "prompt": row.prompt, "responses": row.responses[: rules.n], "scores": counted}
    return _best(row, counted, best, rules) if rules.keep == "best" else _pair(row, counted)


def _best(row: Sampled, counted: list[float | None], best: float, rules: SelectionRules) -> dict[str, Any] | None:
    index = counted.index(best)
    if rules.discard == "none" and not row.responses[index].strip():
        return None
    answer = _answer(row.responses[index])
    return {"id": row.id, "prompt": row.prompt, "messages": [*row.prompt, *answer], "reward": best, "index": index}


def _pair(row: Sampled, counted: list[float | None]) -> dict[str, Any] | None:
    rewards = [reward for reward in counted if reward is not None]
    high, low = max(rewards), min(rewards)
    texts = row.responses[counted.index(high)], row.responses[counted.index(low)]
    if high == low or texts[0] == texts[1] or not all(text.strip() for text in texts):
        return None
    return {
        "id": row.id,
        "prompt": row.prompt,
        "chosen": _answer(texts[0]),
        "rejected": _answer(texts[1]),
        "score_chosen": high,
        "score_rejected": low,
        "p_chosen": 1 / (1 + math.exp(low - high)),  # the exponent is negative: no overflow
    }


def _answer(text: str) -> list[Message]:
    return [{"role": "assistant", "content": text}]
