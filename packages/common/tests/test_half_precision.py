"""16-bit numerics: sums in float32, one rounding, no one-sided drift, and scores that do not know their batch."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from reproalign.common.logprobs.chunked import chunked_token_logps
from reproalign.common.logprobs.head_states import HeadStates
from reproalign.common.logprobs.model import install_completion_logps
from reproalign.common.logprobs.plain import token_statistics
from reproalign.common.logprobs.statistics import chunked_token_statistics
from reproalign.common.models.tiny import tiny_model
from reproalign.common.testing.residuals import assert_no_drift, drift
from reproalign.common.text.collate import PairCollator, forward_inputs

TOKENS, HIDDEN, VOCAB, STEPS = 48, 16, 96, 40
NAMES = ("logps", "forward_kl", "reverse_kl", "entropy")
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    made = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    return made.to(torch.bfloat16)


def inputs(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    targets = torch.randint(VOCAB, (TOKENS,), generator=torch.Generator().manual_seed(seed))
    return random(TOKENS, HIDDEN, seed=seed), random(VOCAB, HIDDEN, seed=1, scale=0.5), targets


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("chunk_size", [1, 7, TOKENS])
def test_statistics_of_16_bit_factors_have_float32_digits(autocast, chunk_size):
    """Logits of 16-bit numbers have an error of 1e-2 here; sums of 16-bit products (autocast's vecdot) one of 1e-3."""
    hidden, weight, targets = inputs()
    reference = random(VOCAB, HIDDEN, seed=2, scale=0.5)
    expected = token_statistics(hidden.double() @ weight.double().T, hidden.double() @ reference.double().T, targets)
    held = torch.float32 if autocast else torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = chunked_token_statistics(
            HeadStates(hidden.to(held), weight.to(held)),
            HeadStates(hidden.to(held), reference.to(held)),
            targets,
            statistics=NAMES,
            chunk_size=chunk_size,
        )
        logps = chunked_token_logps(hidden.to(held), weight.to(held), targets, chunk_size=chunk_size)
    for name in NAMES:
        torch.testing.assert_close(found[name].double(), expected[name], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(logps.double(), expected["logps"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("chunk_size", [1, 5, TOKENS])
def test_a_16_bit_gradient_of_the_head_is_rounded_once_whatever_the_chunks(chunk_size):
    """Half a unit in the last place, 2^-9, for the sum, and what rounded factors come to; not one for every chunk."""
    hidden, weight, targets = inputs()
    wide = weight.double().requires_grad_()
    (torch.log_softmax(hidden.double() @ wide.T, 1)[torch.arange(TOKENS), targets]).sum().backward()
    weight.requires_grad_()
    chunked_token_logps(hidden, weight, targets, chunk_size=chunk_size).sum().backward()
    error = (weight.grad.double() - wide.grad).norm() / wide.grad.norm()
    assert weight.grad.dtype == torch.bfloat16
    assert error < 2**-8


def test_float32_masters_get_a_gradient_that_is_not_rounded_to_16_bits():
    hidden, weight, targets = inputs()
    master = weight.float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logps = chunked_token_logps(hidden.float(), master, targets, chunk_size=5)
    logps.sum().backward()
    assert master.grad.dtype == torch.float32
    assert not torch.equal(master.grad, master.grad.bfloat16().float())


def test_a_frozen_head_gives_states_a_gradient_that_is_rounded_once():
    hidden, weight, targets = inputs()
    wide = hidden.double().requires_grad_()
    scale = torch.linspace(0.1, 1.7, TOKENS)
    logps = torch.log_softmax(wide @ weight.double().T, 1)[torch.arange(TOKENS), targets]
    (logps * scale).sum().backward()
    hidden.requires_grad_()
    (chunked_token_logps(hidden, weight, targets, chunk_size=5) * scale).sum().backward()
    assert (hidden.grad.double() - wide.grad).norm() / wide.grad.norm() < 2**-8


def chunked(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return chunked_token_logps(hidden, weight, targets, chunk_size=7)


def full(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return torch.log_softmax(hidden.float() @ weight.float().T, 1)[torch.arange(len(targets)), targets]


def truncated(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Logits cut to the upper half of their bits: an error of 2^-8 at most, and always towards 0."""
    logits = hidden.float() @ weight.float().T
    cut = (logits.view(torch.int32) & -65536).view(torch.float32)
    return torch.log_softmax(cut, 1)[torch.arange(len(targets)), targets]


def stepwise(ours: Loss, theirs: Loss) -> tuple[list[float], list[float]]:
    """Train by ``ours``; at every step both see the same weights and the same batch."""
    weight = random(VOCAB, HIDDEN, seed=1, scale=0.5).requires_grad_()
    optimizer = torch.optim.SGD([weight], lr=0.5)
    found: tuple[list[float], list[float]] = ([], [])
    for step in range(STEPS):
        hidden, _, targets = inputs(seed=10 + step)
        loss = -ours(hidden, weight, targets).mean()
        found[0].append(loss.item())
        found[1].append(-theirs(hidden, weight.detach(), targets).mean().item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return found


def test_chunked_and_full_log_probs_differ_to_both_sides():
    ours, theirs = stepwise(chunked, full)
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert_no_drift(ours, theirs)


def test_a_pair_that_drifts_is_noticed_though_every_step_is_within_a_tolerance():
    ours, theirs = stepwise(chunked, truncated)
    assert ours == pytest.approx(theirs, rel=1e-2)
    with pytest.raises(AssertionError, match="one-sided drift"):
        assert_no_drift(ours, theirs)


def test_the_statistic_of_drift():
    assert drift([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) == 0.0
    assert drift([1.0, 2.0, 3.0], [0.0, 1.0, 2.0]) == math.inf
    assert drift([0.0, 0.0, 0.0], [1.0, 2.0, 3.0]) == pytest.approx(-2.0 * math.sqrt(3.0))
    with pytest.raises(ValueError, match="at least 3 steps"):
        drift([1.0], [1.0])


@pytest.mark.parametrize("kind", ["llama", "gpt_neox", "gemma"])
def test_scores_of_held_out_pairs_do_not_depend_on_the_batches(kind):
    """In float32 within 1e-4 nats of a sum of up to 24 tokens: padding changes the order of sums, and no more."""
    model = tiny_model(kind).eval()
    install_completion_logps(model)
    draw = torch.Generator().manual_seed(4)

    def row(length: int) -> list[int]:
        return torch.randint(6, 200, (length,), generator=draw).tolist()

    pairs = [
        {
            "chosen_input_ids": row(prompt + chosen),
            "chosen_prompt_length": prompt,
            "rejected_input_ids": row(prompt + rejected),
            "rejected_prompt_length": prompt,
        }
        for prompt, chosen, rejected in (
            (3, 5, 2),
            (9, 24, 1),
            (1, 1, 17),
            (4, 12, 12),
            (6, 3, 9),
            (2, 20, 4),
            (5, 7, 7),
        )
    ]

    @torch.no_grad()
    def scores(size: int) -> list[tuple[float, float]]:
        collate, found = PairCollator(0), []
        for start in range(0, len(pairs), size):
            sums = model(**forward_inputs(collate(pairs[start : start + size])), use_cache=False)["sums"]
            found += zip(*(part.tolist() for part in sums.chunk(2)), strict=True)
        return found

    alone = scores(1)
    for size in (2, 3, 7):
        for (chosen, rejected), expected in zip(scores(size), alone, strict=True):
            assert (chosen, rejected) == pytest.approx(expected, abs=1e-4)
