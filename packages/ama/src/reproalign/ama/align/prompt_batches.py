"""Which prompts an iteration takes, of rejection sampling or of PPO."""

from __future__ import annotations

import numpy as np

from reproalign.common.errors import UserError, counted


def next_batch(count: int, size: int, iteration: int, seed: int) -> list[int]:
    """Return the prompts of an iteration where all are shuffled together: none twice before each was once.

    Args:
        count: of the prompts.
        size: of a batch; more than there are prompts: it goes on in the order of the next pass.
        iteration: from 0 on.
        seed: of the shuffles; every pass over the prompts has one of its own.
    """
    places = range(iteration * size, (iteration + 1) * size)
    orders = {turn: np.random.default_rng([seed, turn]).permutation(count) for turn in {at // count for at in places}}
    return [int(orders[at // count][at % count]) for at in places]


def released_batch(count: int, size: int, iteration: int, seed: int, *, rank: int, ranks: int) -> list[int]:
    """Return the prompts that a process of the release takes in an iteration (``raft_aligner.py``, ``align``).

    The process has the ⌊count/ranks⌋ prompts from rank · ⌊count/ranks⌋ on (the remainder goes to none), shuffles them
    by ``numpy.random.default_rng(seed).permutation``, which is the same one on every process, and takes those at
    iteration · M, …, (iteration + 1) · M - 1 with M = ⌊size/ranks⌋, as far as there are any.
    """
    shard, share = count // ranks, size // ranks
    order = np.random.default_rng(seed).permutation(shard)
    return [rank * shard + int(index) for index in order[iteration * share : (iteration + 1) * share]]


def iteration_prompts(count: int, size: int, iteration: int, seed: int, *, ranks: int | None) -> list[list[int]]:
    """Return a rejection sampling iteration's prompts by process.

    Args:
        count: of the prompts.
        size: of a batch.
        iteration: from 0 on.
        seed: of the shuffles.
        ranks: processes of the release; None: all are one's, each at most once.

    Raises:
        UserError: if the release's slices leave none.
    """
    if ranks is None:
        return [next_batch(count, min(size, count), iteration, seed)]
    parts = [released_batch(count, size, iteration, seed, rank=rank, ranks=ranks) for rank in range(ranks)]
    if not any(parts):
        raise UserError(
            f"iteration {iteration + 1} has no prompts: there are {count} for {counted(ranks, 'process')}, "
            f"prompts_per_iteration={size}, and variant=released goes over them once; lower iterations, or set "
            "variant=paper"
        )
    return parts
