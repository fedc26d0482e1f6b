"""Log-probabilities from full logits: the oracle, written to be read, and the run's own way."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from reproalign.common.logprobs.chunked import chunked_token_logps
from reproalign.common.text.collate import IGNORED


def token_logps(
    logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"], ignore_index: int = IGNORED
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


def run_logps(
    logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"], ignore_index: int = IGNORED
) -> tuple[Float[Tensor, " tokens"], Bool[Tensor, "batch seq-1"]]:
    """Log-probabilities of the scored labels as a run computes them, row by row, and where they stand.

    A run reads states through the head, so the logits are the states of a head that changes nothing.
    """
    states, targets = logits[:, :-1], labels[:, 1:]
    scored = targets != ignore_index
    head = torch.eye(states.shape[-1], dtype=states.dtype)
    return chunked_token_logps(states[scored], head, targets[scored]), scored
