"""How far RLHF moved each part: ‖θ - θ_0‖ / ‖θ_0‖."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from reproalign.ama.average.weights import Averaged
from reproalign.ama.tensors import BASE
from reproalign.common.merging.operands import Operands, ranges
from reproalign.common.merging.planning import MergePlan
from reproalign.common.merging.stream import threads

FIXED = "not averaged"


def part_norms(plan: MergePlan, found: Averaged, workers: int | None) -> dict[str, dict[str, float]]:
    """Measure the change of each part in the Frobenius norm, sums being taken in float64.

    Args:
        plan: of the merge: which tensors there are.
        found: which part a tensor belongs to.
        workers: threads; None: one for each core.

    Returns:
        By part (``base``: what has the base ratio): ``change`` ‖θ - θ_0‖, ``norm`` ‖θ_0‖ and ``relative``, their
        quotient.
    """
    sums: dict[str, Tensor] = {}
    with threads(workers) as pool:
        for name, job in plan.jobs.items():
            place = found.rule.place(name)
            group = FIXED if isinstance(place, float) else BASE if place == BASE else place
            total = sums.setdefault(group, torch.zeros(2, dtype=torch.float64))
            for part in pool.over(partial(_squares, job.operands), ranges(job.operands.size)):
                total += part
    order = [*found.parts.names, BASE, FIXED]
    return {group: _facts(sums[group]) for group in order if group in sums}


def _squares(operands: Operands, start: int, stop: int) -> Tensor:
    before, after = (operands.stored(model, start, stop).double() for model in (0, 1))
    difference = after - before
    return torch.stack([difference @ difference, before @ before])


def _facts(sums: Tensor) -> dict[str, float]:
    change, norm = (math.sqrt(value) for value in sums.tolist())
    return {"change": change, "norm": norm, "relative": change / norm if norm else math.inf}
