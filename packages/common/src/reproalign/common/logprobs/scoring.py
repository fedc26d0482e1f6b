"""Losses of given tokens, and whether each is the likeliest one, a chunk of tokens at a time: for evaluation."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from reproalign.common.logprobs.chunks import chunk_logits, chunks, positions_at_once, statistics_dtype
from reproalign.common.logprobs.head_states import HeadStates


@torch.no_grad()
def token_losses(
    states: HeadStates, targets: Int[Tensor, " tokens"], *, chunk_size: int | None = None
) -> tuple[Float[Tensor, " tokens"], Bool[Tensor, " tokens"]]:
    """Return the loss of every target and whether greedy decoding would have chosen it, in O(chunk x vocab) memory.

    ℓ_t = -log softmax(z_t)[y_t] in nats, and [argmax_v z_t[v] = y_t], of equal logits the first.

    Args:
        states: hidden states and head, or logits, of the positions that predict ``targets``.
        targets: token ids.
        chunk_size: tokens whose logits exist at once; None: by the vocabulary and the kind of device.

    Returns:
        Losses in float32, or float64 for float64 inputs, and truth values.

    Raises:
        ValueError: if there is neither a head nor logits.
    """
    given = states.logits if states.logits is not None else states.hidden
    if given is None or (states.logits is None and states.weight is None):
        raise ValueError("hidden states and head weight, or logits, are needed")
    vocab = given.shape[1] if states.weight is None else states.weight.shape[0]
    losses = torch.empty(len(targets), dtype=statistics_dtype(given), device=given.device)
    greedy = torch.empty(len(targets), dtype=torch.bool, device=given.device)
    for part in chunks(len(targets), positions_at_once(chunk_size, vocab, given.device)):
        if states.logits is not None:
            logits = states.logits[part].to(losses.dtype)
        else:
            assert states.hidden is not None  # checked above
            assert states.weight is not None
            logits = chunk_logits(states.hidden[part], states.weight, states.bias, states.softcap, states.scale)
        picked = logits.gather(1, targets[part, None]).squeeze(1)
        losses[part] = logits.logsumexp(1) - picked
        greedy[part] = logits.argmax(1) == targets[part]
    return losses, greedy
