"""The oracle: log-probabilities from full logits, written to be read."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

IGNORE = -100


def token_logps(
    logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"], ignore_index: int = IGNORE
) -> Float[Tensor, "batch seq-1"]:
    """Log-probability of every label given the tokens before it, in nats.

    lp[t] = log softmax(logits[t])[labels[t + 1]], and 0 where ``labels[t + 1]`` is ``ignore_index``. The first token is
    never scored. (TRL 0.7.7's ``get_batch_logps``.)

    Raises:
        ValueError: if logits and labels differ in batch or length.
    """
    if logits.shape[:2] != labels.shape:
        raise ValueError(f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} differ in batch or length")
    targets = labels[:, 1:]
    scored = targets != ignore_index
    logps = torch.log_softmax(logits[:, :-1], dim=-1)
    picked = torch.gather(logps, 2, targets.masked_fill(~scored, 0).unsqueeze(2)).squeeze(2)
    return picked * scored
