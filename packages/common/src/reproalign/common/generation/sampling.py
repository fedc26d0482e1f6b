"""Sampling a model's responses to prompts: in batches, and resumable without any change of the result."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState

from reproalign.common.console import track
from reproalign.common.data.reading import Row, local_path, read_local
from reproalign.common.data.records import Message, RowError
from reproalign.common.data.sources.hh import transcript
from reproalign.common.data.templates import TURN_MARKS
from reproalign.common.errors import UserError, choose
from reproalign.common.files import recover_lines, write_text
from reproalign.common.generation.filters import CLEANINGS

LAYOUTS = ("chat", *TURN_MARKS)
SPECIAL_TOKENS = ("template", "own")


@dataclass(frozen=True)
class SamplingRules:
    """How responses are drawn.

    Attributes:
        n: responses per prompt.
        max_new_tokens: of a response.
        min_new_tokens: None: every response may have ``max_new_tokens``. Otherwise each batch draws its limit
            uniformly from min_new_tokens, …, max_new_tokens - 1, as RAFT's release does, whose responses are cut off
            there; it depends on the batch's seed alone.
        temperature: 0 takes the likeliest token.
        top_p: mass of the likeliest tokens that are drawn from.
        top_k: number of the likeliest tokens that are drawn from; 0: all.
        batch_size: responses generated at once.
        max_prompt_length: tokens of a prompt; longer ones lose their beginning. None: any.
        stop: strings that end a response, beside the model's own end. None: what the layout puts after one.
        clean: ``stop``: a response is what comes before these strings; ``lmflow``: it is generated to its end or its
            limit, and then cleaned by :func:`~reproalign.common.generation.filters.clean_lmflow`; ``none``: it is left
            as it was generated, with the space around it.
        layout: how the model is asked: by its ``chat`` template, in a ``transcript`` of Human and Assistant, or in
            ``lmflow``'s, with ``###`` before each speaker and no blank lines.
        system_message: layout ``chat``: of a prompt that has no system turn
            (:func:`~reproalign.common.data.templates.with_system`): None, ``auto`` or text.
        special_tokens: ``template``: those that the layout has; ``own``: also those that the tokenizer adds by itself,
            which doubles a BOS of the template.
        response_prefix: text that every response begins with: given to the model, and no part of what is returned.
        own_noise: draw every response with noise of its own (:mod:`reproalign.common.generation.noise`): it then
            depends on the seed and the place of its prompt, but by rounding not on what else is in its batch, and all
            models are given the same noise. A length is then drawn for each response instead of each batch.
    """

    n: int = 1
    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    batch_size: int = 8
    max_prompt_length: int | None = None
    stop: tuple[str, ...] | None = ()
    layout: str = "chat"
    response_prefix: str = ""
    clean: str = "stop"
    min_new_tokens: int | None = None
    top_k: int = 0
    own_noise: bool = False
    system_message: str | None = None
    special_tokens: str = "template"

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
        if self.top_k < 0:
            raise UserError(f"top_k={self.top_k} must not be negative; 0 draws from all tokens")
        if self.min_new_tokens is not None and not 1 <= self.min_new_tokens < self.max_new_tokens:
            raise UserError(
                f"min_new_tokens={self.min_new_tokens} must be at least 1 and below "
                f"max_new_tokens={self.max_new_tokens}; null draws no lengths"
            )
        choose("layout", self.layout, LAYOUTS)
        choose("clean", self.clean, CLEANINGS)
        choose("special_tokens", self.special_tokens, SPECIAL_TOKENS)
        if self.own_noise and not self.temperature > 0:
            raise UserError(f"temperature={self.temperature} must be above 0 for responses that are drawn")

    def limit(self, seed: int) -> int:
        """Return how many tokens a response of the batch with this seed may have."""
        if self.min_new_tokens is None:
            return self.max_new_tokens
        return random.Random(seed).randrange(self.min_new_tokens, self.max_new_tokens)


@dataclass(frozen=True)
class Sampler:
    """A loaded model.

    Attributes:
        encode: prompt -> ids.
        generate: ids of several prompts, seed -> responses to each. A sequence has a seed for each prompt, which only
            rules with ``own_noise`` or without noise can follow; of a number the next prompts' seeds count on from it.
    """

    encode: Callable[[list[Message]], list[int]]
    generate: Callable[[Sequence[list[int]], int | Sequence[int]], list[list[str]]]


def row_seeds(seed: int | Sequence[int], count: int) -> list[int]:
    """Return the seeds of ``count`` prompts that are sampled at once: counting on from a number, or as given."""
    return [seed + place for place in range(count)] if isinstance(seed, int) else list(seed)


def read_prompts(path: str) -> list[list[Message]]:
    """Read the prompt of every row.

    That is ``prompt`` (text or messages), otherwise ``instruction`` (text, with Alpaca's ``input`` below it if there is
    one), otherwise what is before the last answer in ``chosen`` (a transcript, as Anthropic's helpful and harmless
    dialogues are).

    Raises:
        UserError: naming the row that has none.
    """
    return [_prompt(row) for row in read_local(local_path(path, key="prompts"))]


def _prompt(row: Row) -> list[Message]:
    prompt = row.values.get("prompt", _instruction(row.values))
    if isinstance(prompt, str) and prompt.strip():
        return [{"role": "user", "content": prompt}]
    if isinstance(prompt, list) and prompt and all(isinstance(turn, dict) for turn in prompt):
        return [{"role": str(turn.get("role")), "content": str(turn.get("content"))} for turn in prompt]
    if prompt is None and isinstance(row.values.get("chosen"), str):
        try:
            turns = transcript(row.values["chosen"], "chosen")
        except RowError as error:
            raise UserError(f"{row.place}: {error}") from error
        if len(turns) > 1 and turns[-1]["role"] == "assistant":
            return turns[:-1]
        raise UserError(f"{row.place}: 'chosen' must be a transcript that ends with an answer to a turn before it")
    raise UserError(f"{row.place}: {row.problem or 'column prompt (text or messages) is missing or empty'}")


def _instruction(values: dict[str, Any]) -> Any:
    instruction, given = values.get("instruction"), values.get("input")
    if not isinstance(instruction, str) or not isinstance(given, str):
        return instruction
    absent = given.strip().strip("<>").lower() in ("", "noinput")  # both ways in which Alpaca says so
    return instruction if absent else f"{instruction}\n\n{given}"


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
        for batch in track(todo, "sampling", shown=rank == 0):
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


def sample_shared(
    prompts: Sequence[list[Message]],
    folder: Path,
    load: Callable[[], Sampler],
    *,
    seed: int,
    at_once: int,
    state: PartialState,
) -> list[list[str]]:
    """Share ``prompts`` among the processes; return all responses, in order, on the first one and none on the others.

    Each process has a file ``responses-<process>.jsonl`` in ``folder`` (see :func:`sample_responses`).
    """
    parts = [folder / f"responses-{rank}.jsonl" for rank in range(state.num_processes)]
    rank, processes = state.process_index, state.num_processes
    sample_responses(prompts, parts[rank], load, seed=seed, at_once=at_once, rank=rank, processes=processes)
    state.wait_for_everyone()
    if not state.is_main_process:
        return []
    responses: list[list[str]] = [[] for _ in prompts]
    for part, share in zip(parts, shares(len(prompts), at_once, processes), strict=True):
        for index, texts in zip(share, read_responses(part, [prompts[index] for index in share]), strict=True):
            responses[index] = texts
    return responses
