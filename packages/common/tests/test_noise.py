"""Responses drawn with noise of their own: from the model's distribution, whatever else is in the batch."""

from __future__ import annotations

import torch

from reproalign.common.config.model import ModelConfig
from reproalign.common.generation.noise import noisy_scores, stream_seed
from reproalign.common.generation.rules import SamplingRules
from reproalign.common.generation.transformers_engine import transformers_sampler

MODEL = ModelConfig(name="tiny:llama", dtype="float32")
PROMPTS = [[{"role": "user", "content": text}] for text in ("Hi", "Sing a song.", "Why is that so?", "Go", "One more")]


def sampled(batch_size: int, seed: int = 5, **rules) -> list[list[str]]:
    options = SamplingRules(layout="lmflow", own_noise=True, max_new_tokens=6, batch_size=batch_size, **rules)
    sampler = transformers_sampler(MODEL, options)
    size = max(1, batch_size // options.n)
    responses = []
    for start in range(0, len(PROMPTS), size):
        ids = [sampler.encode(prompt) for prompt in PROMPTS[start : start + size]]
        responses += sampler.generate(ids, seed + start)
    return responses


def test_a_response_does_not_depend_on_its_batch():
    alone = sampled(1, n=2)
    assert alone == sampled(4, n=2) == sampled(10, n=2)
    assert [row[:1] for row in alone] == sampled(3)
    assert len({text for row in alone for text in row}) > 5
    assert alone != sampled(1, seed=6, n=2)


def test_noise_draws_from_the_softmax_at_a_temperature_of_the_likeliest():
    scores = torch.tensor([0.5, 2.0, -1.0, 1.0])
    draws = 20_000
    drawn = noisy_scores(range(draws), scores.device, temperature=0.7, top_p=1.0)
    found = drawn(torch.zeros(draws, 1, dtype=torch.long), scores.repeat(draws, 1)).argmax(1)
    expected = (scores / 0.7).softmax(0)
    torch.testing.assert_close(found.bincount(minlength=4) / draws, expected, atol=0.015, rtol=0)
    nucleus = noisy_scores(range(200), scores.device, temperature=1.0, top_p=0.5)
    assert nucleus(torch.zeros(200, 1, dtype=torch.long), scores.repeat(200, 1)).argmax(1).unique().tolist() == [1]
    two = noisy_scores(range(200), scores.device, temperature=1.0, top_p=1.0, top_k=2)
    assert two(torch.zeros(200, 1, dtype=torch.long), scores.repeat(200, 1)).argmax(1).unique().tolist() == [1, 3]


def test_one_stream_is_another_in_its_next_step():
    processors = noisy_scores([3], torch.device("cpu"), temperature=1.0, top_p=1.0)
    ids, scores = torch.zeros(1, 1, dtype=torch.long), torch.zeros(1, 8)
    assert not torch.equal(processors(ids, scores), processors(ids, scores))
    assert len({stream_seed(seed, number) for seed in range(20) for number in range(20)}) == 400


def test_lengths_are_drawn_for_each_response():
    rules = SamplingRules(min_new_tokens=127, max_new_tokens=129)
    limits = [rules.limit(stream_seed(seed, number)) for seed in range(100) for number in range(3)]
    assert set(limits) == {127, 128}
    assert 100 < limits.count(127) < 200
    assert sampled(5, min_new_tokens=2) == sampled(2, min_new_tokens=2) != sampled(2)
