"""From the final hidden states of a text to the one vector that the reward head reads."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

BY_MASK = ("eos", "last", "average", "max")
BY_ID = ("last_not_pad", "first_pad")


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
    mask = attention_mask.bool()
    if pooling == "average":
        wide = torch.promote_types(hidden.dtype, torch.float32)  # sums of hundreds of states
        return (hidden * mask[:, :, None]).sum(1, dtype=wide) / mask.sum(1, keepdim=True)
    if pooling == "max":
        return hidden.masked_fill(~mask[:, :, None], -torch.inf).max(1).values
    positions = torch.arange(mask.shape[1], device=mask.device)
    final = torch.where(mask, positions, -1).max(1).values
    first = torch.where(mask, positions, mask.shape[1]).min(1).values
    return states_at(hidden, final if pooling == "eos" else torch.maximum(final - 1, first))


def pooled_index(
    input_ids: Int[Tensor, "rows seq"], pad_token_id: int, pooling: str = "last_not_pad"
) -> Int[Tensor, " rows"]:
    """Return the position that a pooling which knows padding by its id reads, as ``transformers``' classifiers do.

    Args:
        input_ids: token ids.
        pad_token_id: pads may be anywhere.
        pooling: ``last_not_pad`` (transformers today): the last token that is not pad, 0 if all are; ``first_pad``
            (transformers 4.38, which MMPO's release used): the one before the first pad, modulo length. They differ
            when pad = EOS and EOS occurs inside. A row of pads alone has equal states everywhere; both give 0 for it.
    """
    length = input_ids.shape[1]
    is_pad = input_ids == pad_token_id
    if pooling == "first_pad":
        first = is_pad.int().argmax(-1)  # 0 if there is no pad, which the modulo turns into the last position
        return torch.where(is_pad.all(-1), 0, (first - 1) % length)
    positions = torch.arange(length, device=input_ids.device)
    return torch.where(is_pad, 0, positions).max(-1).values


def states_at(hidden: Float[Tensor, "rows seq hidden"], index: Int[Tensor, " rows"]) -> Float[Tensor, "rows hidden"]:
    """Return the state at one position of each row."""
    return hidden[torch.arange(len(hidden), device=hidden.device), index]
