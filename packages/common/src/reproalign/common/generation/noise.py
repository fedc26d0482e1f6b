"""Sampling with noise that belongs to a prompt: a response then depends on no other prompt of its batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


class PromptNoise(LogitsProcessor):
    """Adds Gumbel noise of its own to the scores of each row, so that their arg max is a draw from softmax(scores).

    arg max_v (z_v + g_v) with g_v = -log e_v, e_v ~ Exp(1), is v with probability softmax(z)_v (Gumbel-max). Every row
    has its own generator: its noise depends neither on the other rows nor on the model, so that two models that are
    sampled with one seed answer a prompt with common random numbers.

    Args:
        seeds: of each row's generator.
        device: of the scores.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(
        self, input_ids: Int[Tensor, "rows seq"], scores: Float[Tensor, "rows vocab"]
    ) -> Float[Tensor, "rows vocab"]:
        """Return the scores with the noise of the next token."""
        noise = torch.empty(scores.shape, dtype=torch.float32, device=scores.device)
        for row, generator in zip(noise, self.generators, strict=True):
            row.exponential_(generator=generator)
        smallest = torch.finfo(noise.dtype).tiny  # log 0 would make a token certain
        return scores.float() - noise.clamp_min_(smallest).log_()


def noisy_scores(
    seeds: Sequence[int], device: torch.device, *, temperature: float, top_p: float, top_k: int = 0
) -> LogitsProcessorList:
    """Return what turns greedy decoding into sampling at ``temperature`` from the likeliest tokens.

    Args:
        seeds: of each row.
        device: of the scores.
        temperature: above 0.
        top_p: mass of the likeliest tokens, in (0, 1].
        top_k: number of the likeliest tokens; 0: all.
    """
    made = LogitsProcessorList()
    if temperature != 1:
        made.append(TemperatureLogitsWarper(temperature))
    if top_k:
        made.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        made.append(TopPLogitsWarper(top_p))
    made.append(PromptNoise(seeds, device))
    return made


def stream_seed(seed: int, number: int) -> int:
    """Return the seed of response ``number`` (from 0) to the prompt whose seed is ``seed``; streams are independent."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1, np.uint64)[0])
