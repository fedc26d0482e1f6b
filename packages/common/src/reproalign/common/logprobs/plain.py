"""The oracle: log-probabilities from full logits, written to be read."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

IGNORE = -100


def token_logps(
    logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"]
) -> Float[Tensor, "batch seq-1"]:
    """Log-probability of every label given the tokens before it, in nats.

    lp[t] = log softmax(logits[t])[labels[t + 1]], and 0 where ``labels[t + 1]`` is -100. The first token is never
    scored. (MMPO release, Eq. of section 5.1 in TRL's ``get_batch_logps``.)
    """
    targets = labels[:, 1:]
    scored = targets != IGNORE
    logps = torch.log_softmax(logits[:, :-1], dim=-1)
    picked = torch.gather(logps, 2, targets.masked_fill(~scored, 0).unsqueeze(2)).squeeze(2)
    return picked.masked_fill(~scored, 0.0)


def sequence_logps(
    logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"], average: bool = False
) -> Float[Tensor, " batch"]:
    """Sum (or mean) of :func:`token_logps` over the scored tokens; a row without any gives 0 (or NaN)."""
    sums = token_logps(logits, labels).sum(-1)
    return sums / (labels[:, 1:] != IGNORE).sum(-1) if average else sums
