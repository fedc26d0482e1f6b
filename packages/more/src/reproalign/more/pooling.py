"""From the final hidden states of a text to the one vector that the reward head reads."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reproalign.common.errors import choose

POOLINGS = ("eos", "last", "average", "max")


def pool(
    hidden: Float[Tensor, "rows seq hidden"],
    attention_mask: Int[Tensor, "rows seq"],
    pooling: str,
) -> Float[Tensor, "rows hidden"]:
    """Pool the states of real tokens, wherever the padding is.

    Args:
        hidden: H.
        attention_mask: 1 on real tokens, at least one per row.
        pooling: ``eos``: the final token's state; ``last``: that of the token before it (of a text that ends with EOS,
            its last own token; of one token, that one); ``average``; ``max``: of each component.
    """
    choose("model.pooling", pooling, POOLINGS)
    mask = attention_mask.bool()
    if pooling == "average":
        wide = torch.promote_types(hidden.dtype, torch.float32)  # sums of hundreds of states
        return (hidden * mask[:, :, None]).sum(1, dtype=wide) / mask.sum(1, keepdim=True)
    if pooling == "max":
        return hidden.masked_fill(~mask[:, :, None], -torch.inf).max(1).values
    positions = torch.arange(mask.shape[1], device=mask.device)
    final = torch.where(mask, positions, -1).max(1).values
    first = torch.where(mask, positions, mask.shape[1]).min(1).values
    index = final if pooling == "eos" else torch.maximum(final - 1, first)
    return hidden[torch.arange(len(hidden), device=hidden.device), index]


def released_pool(
    hidden: Float[Tensor, "rows seq hidden"],
    input_ids: Int[Tensor, "rows seq"],
    attention_mask: Int[Tensor, "rows seq"],
    pooling: str,
    *,
    pad_token_id: int,
    padding_side: str,
) -> Float[Tensor, "rows hidden"]:
    """Pool as the release does.

    Positions are counted from the ids, so that a real token which equals the pad id moves them (right padding), and
    count from the end where they fall before the beginning. ``max`` takes padding in as zeros (ERRATA Q9).
    """
    choose("model.pooling", pooling, POOLINGS)
    length = hidden.shape[1]
    if pooling == "average":
        return pool(hidden, attention_mask, "average")
    if pooling == "max":
        return (hidden * attention_mask[:, :, None]).max(1).values
    back = 1 if pooling == "eos" else 2
    if padding_side == "left":
        return hidden[:, (length - back) % length]
    index = ((input_ids != pad_token_id).sum(1) - back) % length
    return hidden[torch.arange(len(hidden), device=hidden.device), index]
