"""Losses of tokens for evaluation equal the plain formula, whatever the chunks; hits are those of the arg-max."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reproalign.common.logprobs.head_states import HeadStates
from reproalign.common.logprobs.scoring import token_losses

TOKENS, HIDDEN, VOCAB = 9, 4, 13


@given(
    chunk_size=st.integers(1, TOKENS + 2),
    softcap=st.sampled_from([None, 5.0]),
    scale=st.sampled_from([1.0, 0.5]),
    as_logits=st.booleans(),
    seed=st.integers(0, 5),
)
def test_equals_the_plain_formula(chunk_size, softcap, scale, as_logits, seed):
    generator = torch.Generator().manual_seed(seed)
    hidden, weight = (torch.randn(size, HIDDEN, generator=generator, dtype=torch.float64) for size in (TOKENS, VOCAB))
    bias = torch.randn(VOCAB, generator=generator, dtype=torch.float64)
    targets = torch.randint(VOCAB, (TOKENS,), generator=generator)
    logits = scale * (hidden @ weight.T + bias)
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    states = HeadStates(logits=logits) if as_logits else HeadStates(hidden, weight, bias, softcap, scale)
    losses, greedy = token_losses(states, targets, chunk_size=chunk_size)
    torch.testing.assert_close(losses, -logits.log_softmax(1).gather(1, targets[:, None]).squeeze(1))
    assert greedy.tolist() == (logits.argmax(1) == targets).tolist()


def test_no_tokens_give_no_losses_and_nothing_to_compute_from_is_refused():
    losses, greedy = token_losses(HeadStates(logits=torch.zeros(0, VOCAB)), torch.zeros(0, dtype=torch.int64))
    assert (len(losses), len(greedy)) == (0, 0)
    with pytest.raises(ValueError, match="head weight, or logits"):
        token_losses(HeadStates(hidden=torch.zeros(1, HIDDEN)), torch.zeros(1, dtype=torch.int64))
