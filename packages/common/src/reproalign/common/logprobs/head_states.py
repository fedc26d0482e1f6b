"""What a model knows of a batch's tokens before its logits exist: final hidden states, and the head that reads them."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from reproalign.common.logprobs.chunks import chunk_logits, statistics_dtype


@dataclass(frozen=True)
class HeadStates:
    """Final hidden states and the head that makes logits of them: z = softcap(scale · (hidden weightᵀ + bias)).

    ``logits`` stands in their place where a head cannot be had as a matrix (adapted or quantised ones).
    """

    hidden: Float[Tensor, "tokens hidden"] | None = None
    weight: Float[Tensor, "vocab hidden"] | None = None
    bias: Float[Tensor, " vocab"] | None = None
    softcap: float | None = None
    scale: float = 1.0
    logits: Float[Tensor, "tokens vocab"] | None = None


def log_softmax_of(states: HeadStates, part: slice) -> Tensor:
    """Log-probabilities of one chunk of tokens, in a buffer that is the caller's to overwrite."""
    if states.logits is not None:
        logits = states.logits[part]
        return logits.log_softmax(1, dtype=statistics_dtype(logits))
    assert states.hidden is not None  # statistics.check_reference
    assert states.weight is not None
    logits = chunk_logits(states.hidden[part], states.weight, states.bias, states.softcap, states.scale)
    return logits.sub_(logits.logsumexp(1, keepdim=True))
