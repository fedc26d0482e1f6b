"""Sampling a model's responses to prompts: in batches, and resumable without any change of the result."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from rich.progress import track
from torch import Tensor
from transformers import PreTrainedTokenizerBase, set_seed

from reproalign.common.config import ModelConfig
from reproalign.common.data.collate import pad_rows
from reproalign.common.data.prepare import check_tokenizer
from reproalign.common.data.reading import local_path, read_local
from reproalign.common.data.records import Message
from reproalign.common.data.templates import render
from reproalign.common.errors import UserError
from reproalign.common.files import recover_lines, write_text
from reproalign.common.training.models import load_causal_lm, load_tokenizer, model_path

logger = logging.getLogger(__name__)

_PROBE = "an answer"


@dataclass(frozen=True)
class SamplingRules:
    """How responses are drawn.

    Attributes:
        n: responses per prompt.
        max_new_tokens: of a response.
        temperature: 0 takes the likeliest token.
        top_p: mass of the likeliest tokens that are drawn from.
        batch_size: responses generated at once.
        max_prompt_length: tokens of a prompt; longer ones lose their beginning. None: any.
        stop: strings that end a response, beside the model's own end. None: what the chat template puts after one.
    """

    n: int = 1
    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    batch_size: int = 8
    max_prompt_length: int | None = None
    stop: tuple[str, ...] | None = ()

    def check(self) -> None:
        """Refuse what cannot be sampled with.

        Raises:
            UserError: naming the key, its value and what is allowed.
        """
        for name in ("n", "max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} must be at least 1")
        if not self.temperature >= 0:
            raise UserError(f"temperature={self.temperature} must not be negative")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p={self.top_p} must be in (0, 1]")
        if self.max_prompt_length is not None and self.max_prompt_length < 1:
            raise UserError(f"max_prompt_length={self.max_prompt_length} must be at least 1")


@dataclass(frozen=True)
class Sampler:
    """A loaded model.

    Attributes:
        encode: prompt -> ids.
        generate: ids of several prompts, seed -> responses to each.
    """

    encode: Callable[[list[Message]], list[int]]
    generate: Callable[[Sequence[list[int]], int], list[list[str]]]


def read_prompts(path: str) -> list[list[Message]]:
    """Read ``prompt`` (text or messages), or else ``instruction`` (text), of every row.

    Raises:
        UserError: naming the row that has none.
    """
    prompts = []
    for row in read_local(local_path(path)):
        prompt = row.values.get("prompt", row.values.get("instruction"))
        if isinstance(prompt, str) and prompt.strip():
            prompts.append([{"role": "user", "content": prompt}])
        elif isinstance(prompt, list) and prompt and all(isinstance(turn, dict) for turn in prompt):
            prompts.append([{"role": str(turn.get("role")), "content": str(turn.get("content"))} for turn in prompt])
        else:
            raise UserError(f"{row.place}: {row.problem or 'column prompt (text or messages) is missing or empty'}")
    return prompts


def shares(count: int, at_once: int, processes: int) -> list[list[int]]:
    """Deal ``count`` prompts to processes in batches of ``at_once`` in turns: the indices of each process.

    Batches are the same for any number of processes, and so are therefore the responses.
    """
    starts = range(0, count, at_once)
    return [
        [index for start in starts[rank::processes] for index in range(start, min(start + at_once, count))]
        for rank in range(processes)
    ]


def sample_responses(
    prompts: Sequence[list[Message]],
    path: Path,
    load: Callable[[], Sampler],
    *,
    seed: int,
    at_once: int = 1,
    rank: int = 0,
    processes: int = 1,
) -> list[list[str]]:
    """Return the responses to this process's share of ``prompts``.

    ``path`` grows batch by batch, a line ``{"prompt", "responses"}`` for each prompt. What it holds already is not
    sampled again, and every batch has a seed of its own, so that interruptions change nothing.

    Args:
        prompts: of all processes.
        path: of this process's file.
        load: makes the sampler; called only if there is something left to do.
        seed: of the first batch; a batch's is this plus the index of its first prompt.
        at_once: prompts of a batch.
        rank: this process.
        processes: how many there are.

    Raises:
        UserError: if ``path`` holds responses to other prompts.
    """
    mine = shares(len(prompts), at_once, processes)[rank]
    batches = [mine[start : start + at_once] for start in range(0, len(mine), at_once)]
    done = read_responses(path, [prompts[index] for index in mine])
    whole = len(done) if len(done) == len(mine) else len(done) // at_once * at_once
    if whole < len(done):  # a batch that was not written to its end is sampled again
        write_text(path, "".join(f"{line}\n" for line in recover_lines(path)[:whole]))
        done = done[:whole]
    todo = batches[-(-whole // at_once) :]
    if not todo:
        return done
    sampler = load()
    # All of them first: a prompt that cannot be rendered is found before anything is sampled.
    ids = {index: sampler.encode(prompts[index]) for batch in todo for index in batch}
    with path.open("a", encoding="utf-8") as stream:
        for batch in track(todo, description="sampling", disable=rank != 0):
            responses = sampler.generate([ids[index] for index in batch], seed + batch[0])
            for index, texts in zip(batch, responses, strict=True):
                stream.write(json.dumps({"prompt": prompts[index], "responses": texts}, ensure_ascii=False) + "\n")
            stream.flush()
            done += responses
    return done


def read_responses(path: Path, prompts: Sequence[list[Message]]) -> list[list[str]]:
    """Read the responses that ``path`` holds so far, of the first of ``prompts``.

    Raises:
        UserError: if they are not responses to these prompts.
    """
    done = []
    for number, line in enumerate(recover_lines(path)):
        try:
            row = json.loads(line)
            fits = number < len(prompts) and row["prompt"] == prompts[number]
            done.append([str(text) for text in row["responses"]])
        except (ValueError, KeyError, TypeError):
            fits = False
        if not fits:
            raise UserError(
                f"{path} line {number + 1}: not the responses to prompt {number + 1} of this run; choose another "
                "output_dir"
            )
    return done


def transformers_sampler(model: ModelConfig, rules: SamplingRules) -> Sampler:
    """Load ``model`` into transformers."""
    tokenizer = _tokenizer(model)
    stop = rules.stop if rules.stop is not None else turn_end(tokenizer)
    loaded: Any = load_causal_lm(model, trainable=False)
    loaded.to(PartialState().device)
    options: dict[str, Any] = {"max_new_tokens": rules.max_new_tokens, "pad_token_id": tokenizer.pad_token_id}
    if rules.temperature:
        options |= {"do_sample": True, "temperature": rules.temperature, "top_p": rules.top_p, "top_k": 0}
    else:
        options |= {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if stop:
        options |= {"stop_strings": list(stop), "tokenizer": tokenizer}

    @torch.no_grad()
    def generate(rows: Sequence[list[int]], seed: int) -> list[list[str]]:
        set_seed(seed)
        ids = pad_rows(rows, int(tokenizer.pad_token_id), side="left").to(loaded.device)  # type: ignore[arg-type]
        mask = pad_rows([[1] * len(row) for row in rows], 0, side="left").to(loaded.device)
        responses: list[list[str]] = [[] for _ in rows]
        while len(responses[0]) < rules.n:
            count = min(max(1, rules.batch_size // len(rows)), rules.n - len(responses[0]))
            output = loaded.generate(input_ids=ids, attention_mask=mask, num_return_sequences=count, **options)
            new: Tensor = output[:, ids.shape[1] :]
            texts = tokenizer.batch_decode(new, skip_special_tokens=True)
            for index, found in enumerate(responses):
                found += [cut(text, stop) for text in texts[index * count : (index + 1) * count]]
        return responses

    return Sampler(lambda prompt: prompt_ids(tokenizer, prompt, rules.max_prompt_length), generate)


def vllm_sampler(model: ModelConfig, rules: SamplingRules) -> Sampler:
    """Load ``model`` into vLLM.

    Raises:
        UserError: if vLLM is not installed.
    """
    try:
        from vllm import LLM, SamplingParams  # type: ignore[import-not-found]
    except ImportError as error:
        raise UserError(
            "backend=vllm needs vLLM, which is not installed; pip install vllm, or set backend=transformers"
        ) from error
    tokenizer = _tokenizer(model)
    stop = rules.stop if rules.stop is not None else turn_end(tokenizer)
    engine = LLM(
        model=model_path(model.name),
        tokenizer=model_path(model.tokenizer or model.name),
        revision=model.revision,
        dtype=model.dtype,
        trust_remote_code=model.trust_remote_code,
    )

    def generate(rows: Sequence[list[int]], seed: int) -> list[list[str]]:
        params = SamplingParams(
            n=rules.n,
            temperature=rules.temperature,
            top_p=rules.top_p,
            max_tokens=rules.max_new_tokens,
            stop=list(stop),
            seed=seed,
        )
        outputs = engine.generate([{"prompt_token_ids": row} for row in rows], params, use_tqdm=False)
        return [[cut(output.text, stop) for output in request.outputs] for request in outputs]

    return Sampler(lambda prompt: prompt_ids(tokenizer, prompt, rules.max_prompt_length), generate)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompt: list[Message], max_length: int | None) -> list[int]:
    """Return the ids of a prompt with the header of the answer; of an over-long one the last ``max_length``."""
    ids = list(tokenizer(render(tokenizer, prompt, generation=True), add_special_tokens=False)["input_ids"])
    if max_length is None or len(ids) <= max_length:
        return ids
    logger.warning("a prompt of %d tokens loses its beginning (max_prompt_length=%d)", len(ids), max_length)
    return ids[-max_length:]


def turn_end(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return what the chat template puts after an answer, if anything: models trained with it end their answers so."""
    dialogue = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": _PROBE}]
    end = render(tokenizer, dialogue).rpartition(_PROBE)[2].strip()
    return (end,) if end else ()


def cut(text: str, stop: Sequence[str]) -> str:
    """Return ``text`` up to the first of the strings ``stop``, without surrounding space."""
    for end in stop:
        text = text.partition(end)[0]
    return text.strip()


def _tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase:
    tokenizer = load_tokenizer(model)
    check_tokenizer(tokenizer, chat_template=model.chat_template)
    return tokenizer
