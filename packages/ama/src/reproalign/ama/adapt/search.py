"""``objective=reward``: the direct objective of eq. 3, the reward of the averaged model, by black-box search.

The search is COBYQA (Ragonneau & Zhang, 2022; in SciPy): quadratic models in a trust region, with linear constraints,
made for a few unknowns and a costly objective. A candidate is averaged, sampled from and scored once; all draw with
the same noise, which makes the objective a function. It is deterministic, so that an interrupted search goes through
the same candidates again and finds them finished.
"""

from __future__ import annotations

import numpy as np
from scipy.optimize import LinearConstraint, minimize

from reproalign.ama.adapt.config import SearchConfig
from reproalign.ama.adapt.region import Region, Vector, pull_inside
from reproalign.ama.adapt.solution import Log, Measure, Solution


def search(region: Region, names: list[str], options: SearchConfig, measure: Measure, log: Log) -> Solution:
    """Look for the ratios with the highest reward (eq. 3).

    Args:
        region: what is allowed; equal ratios are the first candidate.
        names: of the groups.
        options: evaluations and steps.
        measure: gives the reward at ratios, as the candidate of a number, from 1 on.
        log: takes number of the candidate and numbers.
    """
    known: dict[tuple[float, ...], float] = {}
    start = region.start[:-1]

    def objective(unknowns: Vector) -> float:
        ratios = region.ratios(pull_inside(unknowns, start, rows, constants))
        key = tuple(ratios)
        if key not in known:
            known[key] = measure(len(known) + 1, ratios)
            log(len(known), {"reward": known[key]} | {f"ratio/{n}": a for n, a in zip(names, ratios, strict=True)})
        return -known[key]

    rows, constants = region.pairwise() if len(names) > 1 else (np.zeros((1, 0)), np.zeros(1))
    message, converged = "a single group stays at the base ratio", True
    if len(names) > 1:
        found = minimize(
            objective,
            start,
            method="COBYQA",
            constraints=[LinearConstraint(rows, -constants, np.inf)],
            options={
                "maxfev": options.evaluations,
                "initial_tr_radius": options.radius,
                "final_tr_radius": min(options.tolerance, options.radius),
                "scale": False,
            },
        )
        message, converged = str(found.message), bool(found.success)
    else:
        objective(start)
    best = max(known, key=lambda key: known[key])
    first = next(iter(known.values()))
    facts = {"converged": converged, "message": message, "reward": known[best], "reward_at_equal_ratios": first}
    return Solution(list(best), len(known), facts)
