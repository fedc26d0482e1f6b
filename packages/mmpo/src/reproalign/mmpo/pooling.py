"""Where a sequence classifier reads the reward."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from reproalign.common.errors import choose


def pooled_index(input_ids: Int[Tensor, "batch seq"], pad_token_id: int, pool: str = "last") -> Int[Tensor, " batch"]:
    """Return the position whose hidden state is scored.

    Args:
        input_ids: token ids.
        pad_token_id: pads may be anywhere.
        pool: ``last`` (current transformers): the last token that is not pad, 0 if all are; ``first_pad``
            (transformers 4.38, which the release used): the one before the first pad, modulo length. They differ when
            pad = EOS and EOS occurs inside. A row of pads alone has equal states everywhere; both give 0 for it.

    Raises:
        UserError: for another ``pool``.
    """
    choose("pool", pool, ["last", "first_pad"])
    length = input_ids.shape[1]
    is_pad = input_ids == pad_token_id
    if pool == "first_pad":
        first = is_pad.int().argmax(-1)  # 0 if there is no pad, which the modulo turns into the last position
        return torch.where(is_pad.all(-1), 0, (first - 1) % length)
    positions = torch.arange(length, device=input_ids.device)
    return torch.where(is_pad, 0, positions).max(-1).values


def first_pad_ids(input_ids: list[int], pad_token_id: int) -> list[int]:
    """Cut a row before its first pad, which gives ``first_pad`` pooling with a model that pools at the last token.

    A causal model's state at the token before the pad does not see what comes after, so cutting it off is exact. A row
    that begins with pad is kept whole: there the release reads the last position.
    """
    if pad_token_id not in input_ids[1:] or input_ids[0] == pad_token_id:
        return input_ids
    return input_ids[: input_ids.index(pad_token_id)]
