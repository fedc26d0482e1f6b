"""How the learning rate goes: the share of its peak at every optimiser step, counted from 0."""

from __future__ import annotations

import logging
import math

from reproalign.common.errors import UserError
from reproalign.common.training.collecting import Factor

logger = logging.getLogger(__name__)

WARM_START = 0.1  # share of the rate at the first step


def warmup_cosine(warmup: int, steps: int) -> Factor:
    """A line from a tenth of the rate to all of it over ``warmup`` steps, then a cosine to 0 at the last of ``steps``.

    A run that is shorter than its warm-up never reaches its full rate, which is said once.
    """
    if steps <= warmup:
        logger.warning("warmup_steps=%d last the whole run of %d steps: its full rate is never reached", warmup, steps)
    rising = min(warmup, steps)

    def factor(step: int) -> float:
        if step < rising:
            return WARM_START + (1 - WARM_START) * step / rising
        return _cosine(min(1.0, (step - rising) / max(1, steps - rising)))

    return factor


def released_cosine(warmup: int, length: float, ticks: int) -> Factor:
    """The release's schedule, which ticks once for every process at an optimiser step (ERRATA Q5).

    At tick t = step · ``ticks``: a line from a tenth of the rate to all of it over ``warmup`` ticks, then a cosine over
    ``length - warmup`` of them, which goes up again beyond its minimum.

    Args:
        warmup: ticks of the line.
        length: training examples of one epoch of the whole split, which the release takes for steps.
        ticks: per optimiser step: accelerate's scheduler steps once for every process.

    Raises:
        UserError: if the cosine would have no length.
    """
    if length == warmup:
        raise UserError(
            f"warmup_steps={warmup} are as many as the training examples, and the release's cosine lasts the rest of "
            "them; set another warmup_steps"
        )

    def factor(step: int) -> float:
        tick = step * ticks
        if tick < warmup:
            return WARM_START + (1 - WARM_START) * tick / warmup
        return _cosine((tick - warmup) / (length - warmup))

    return factor


def released_ppo(warmup: int) -> Factor:
    """The rate of the release's PPO: a line to all of it over ``warmup`` + 1 steps, then constant (ERRATA Q18)."""
    return lambda step: min(1.0, (step + 1) / (warmup + 1))


def _cosine(gone: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * gone))
