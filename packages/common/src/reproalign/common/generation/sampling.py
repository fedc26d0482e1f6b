"""Sampling a model's responses to prompts: in batches, and resumable without any change of the result."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate import PartialState

from reproalign.common.console import track
from reproalign.common.data.records import Message
from reproalign.common.errors import UserError
from reproalign.common.generation.rules import SamplingRules
from reproalign.common.journal import growing, keep_lines, recover_lines


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


Engine = Callable[[SamplingRules], Sampler]  # a loaded model: from rules to what samples by them


def row_seeds(seed: int | Sequence[int], count: int) -> list[int]:
    """Return the seeds of ``count`` prompts that are sampled at once: counting on from a number, or as given."""
    return [seed + place for place in range(count)] if isinstance(seed, int) else list(seed)


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
        keep_lines(path, whole)
        done = done[:whole]
    todo = batches[-(-whole // at_once) :]
    if not todo:
        return done
    sampler = load()
    # All of them first: a prompt that cannot be rendered is found before anything is sampled.
    ids = {index: sampler.encode(prompts[index]) for batch in todo for index in batch}
    with growing(path) as write:
        for batch in track(todo, "sampling", shown=rank == 0):
            responses = sampler.generate([ids[index] for index in batch], seed + batch[0])
            rows = [
                {"prompt": prompts[index], "responses": texts} for index, texts in zip(batch, responses, strict=True)
            ]
            write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
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
