"""Models in transformers that answer prompts, with one stream of noise or with one for each response."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor
from transformers import PreTrainedTokenizerBase, set_seed

from reproalign.common.config.model import LoadedModelConfig
from reproalign.common.generation.asking import asking_tokenizer, finish, prompt_ids, stops
from reproalign.common.generation.noise import noisy_scores, stream_seed
from reproalign.common.generation.rules import SamplingRules
from reproalign.common.generation.sampling import Engine, Sampler, row_seeds
from reproalign.common.models.load import load_causal_lm
from reproalign.common.text.collate import pad_rows


def transformers_sampler(model: LoadedModelConfig, rules: SamplingRules) -> Sampler:
    """Load ``model`` into transformers."""
    return transformers_engine(model, rules.layout)(rules)


def transformers_engine(model: LoadedModelConfig, layout: str) -> Engine:
    """Load ``model`` into transformers for samplers of several rules, all of one layout."""
    tokenizer = asking_tokenizer(model, layout)
    loaded: Any = load_causal_lm(model, trainable=False)
    loaded.to(PartialState().device)
    return lambda rules: _transformers_rules(tokenizer, loaded, rules)


def _transformers_rules(tokenizer: PreTrainedTokenizerBase, loaded: Any, rules: SamplingRules) -> Sampler:
    stop = stops(tokenizer, rules)
    options: dict[str, Any] = {"pad_token_id": tokenizer.pad_token_id}
    if rules.temperature and not rules.own_noise:
        options |= {"do_sample": True, "temperature": rules.temperature, "top_p": rules.top_p, "top_k": rules.top_k}
    else:
        options |= {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if stop:
        options |= {"stop_strings": list(stop), "tokenizer": tokenizer}
    draw = _draw_each if rules.own_noise else _draw_batch

    @torch.no_grad()
    def generate(rows: Sequence[list[int]], seed: int | Sequence[int]) -> list[list[str]]:
        seeds = row_seeds(seed, len(rows))
        if isinstance(seed, int):
            set_seed(seed)
        ids = pad_rows(rows, int(tokenizer.pad_token_id), side="left").to(loaded.device)  # type: ignore[arg-type]
        mask = pad_rows([[1] * len(row) for row in rows], 0, side="left").to(loaded.device)
        responses: list[list[str]] = [[] for _ in rows]
        while len(responses[0]) < rules.n:
            done = len(responses[0])
            count = min(max(1, rules.batch_size // len(rows)), rules.n - done)
            new = draw(loaded, ids, mask, rules, range(done, done + count), seeds, options)
            texts = [str(tokenizer.decode(row, skip_special_tokens=True)) for row in new]
            for index, found in enumerate(responses):
                found += [finish(text, rules, stop) for text in texts[index * count : (index + 1) * count]]
        return responses

    return Sampler(partial(prompt_ids, tokenizer, rules=rules), generate)


def _draw_batch(
    model: Any,
    ids: Tensor,
    mask: Tensor,
    rules: SamplingRules,
    numbers: range,
    seeds: Sequence[int],
    options: dict[str, Any],
) -> Sequence[Tensor]:
    """Return the new tokens of responses ``numbers`` to each row, with the noise of the process's one generator."""
    output = model.generate(
        input_ids=ids,
        attention_mask=mask,
        num_return_sequences=len(numbers),
        max_new_tokens=rules.limit(seeds[0]),
        **options,
    )
    return list(output[:, ids.shape[1] :])


def _draw_each(
    model: Any,
    ids: Tensor,
    mask: Tensor,
    rules: SamplingRules,
    numbers: range,
    seeds: Sequence[int],
    options: dict[str, Any],
) -> Sequence[Tensor]:
    """Return the new tokens of responses ``numbers`` to each row, each with noise and a length of its own."""
    streams = [stream_seed(seed, number) for seed in seeds for number in numbers]
    limits = [rules.limit(stream) for stream in streams]
    output = model.generate(
        input_ids=ids.repeat_interleave(len(numbers), 0),
        attention_mask=mask.repeat_interleave(len(numbers), 0),
        max_new_tokens=max(limits),
        logits_processor=noisy_scores(
            streams, ids.device, temperature=rules.temperature, top_p=rules.top_p, top_k=rules.top_k
        ),
        **options,
    )
    return [row[ids.shape[1] :][:limit] for row, limit in zip(output, limits, strict=True)]
