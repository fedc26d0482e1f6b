"""How the release of MORE reads a text (``variant=released``); models trained so must be read so everywhere."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from reproalign.common.reward.pooling import pool, states_at


@dataclass(frozen=True)
class SpecialIds:
    """Ids around a text and beside it; ``bos`` None: none."""

    bos: int | None
    eos: int
    pad: int


RELEASED_IDS = SpecialIds(bos=1, eos=2, pad=3)  # Llama's, of Pythia too (MORE ERRATA Q3)


def enclose(ids: list[int], special: SpecialIds) -> list[int]:
    """Put BOS and EOS around a text's ids, whatever they are."""
    return [*([] if special.bos is None else [special.bos]), *ids, special.eos]


def released_pool(
    hidden: Float[Tensor, "rows seq hidden"],
    input_ids: Int[Tensor, "rows seq"],
    attention_mask: Int[Tensor, "rows seq"],
    pooling: str,
    *,
    pad_token_id: int,
    padding_side: str,
) -> Float[Tensor, "rows hidden"]:
    """Pool as the release of MORE does.

    Positions are counted from the ids, so that a real token which equals the pad id moves them (right padding), and
    count from the end where they fall before the beginning. ``max`` takes padding in as zeros (MORE ERRATA Q9).
    """
    length = hidden.shape[1]
    if pooling == "average":
        return pool(hidden, attention_mask, "average")
    if pooling == "max":
        return (hidden * attention_mask[:, :, None]).max(1).values
    back = 1 if pooling == "eos" else 2
    if padding_side == "left":
        return hidden[:, (length - back) % length]
    return states_at(hidden, ((input_ids != pad_token_id).sum(1) - back) % length)
