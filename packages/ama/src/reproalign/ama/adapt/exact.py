"""``solver=exact``: the best ratios on the constraint set, by SLSQP (Kraft 1988) with exact gradients over all rows.

Every evaluation is written down. SLSQP is deterministic, so a run that was interrupted goes through the same ratios
again, reading what is there instead of computing it, and ends at the same bits.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from scipy.optimize import minimize

from reproalign.ama.adapt.likelihood import ObjectiveValue
from reproalign.ama.adapt.region import Region, Vector
from reproalign.ama.adapt.solution import Log, Problem, Solution
from reproalign.common.errors import UserError
from reproalign.common.journal import growing, recover_lines

EVALUATIONS = "evaluations.jsonl"


def solve_exact(problem: Problem, epsilon: float, folder: Path, log: Log) -> Solution:
    """Minimise the negative log-likelihood over the region.

    Args:
        problem: rows, model, options.
        epsilon: how close ratios stay, see :mod:`~reproalign.ama.adapt.region`.
        folder: of the evaluations.
        log: takes number of the evaluation and numbers.
    """
    settings = problem.settings
    region = Region(settings.base, problem.weights.tolist(), epsilon, settings.bounded)
    objective = _Objective(problem, region, folder, log)
    if len(problem.names) == 1:
        objective(region.start)
        return Solution([settings.base], 1, {"converged": True, "message": "a single group stays at the base ratio"})
    rows, constants = region.constraints()
    found = minimize(
        objective,
        region.start,
        jac=True,
        method="SLSQP",
        constraints={"type": "ineq", "fun": lambda u: rows @ u + constants, "jac": lambda u: rows},
        options={"maxiter": problem.max_evaluations, "ftol": problem.tolerance},
        callback=objective.stop_if_enough,
    )
    ratios, value = objective.best
    facts = {"converged": bool(found.success), "message": str(found.message), "objective": value}
    return Solution(ratios, len(objective.known), facts)


class _Objective:
    """The objective and its gradient in the unknowns, remembered."""

    def __init__(self, problem: Problem, region: Region, folder: Path, log: Log) -> None:
        self.problem = problem
        self.region = region
        self.log = log
        self.path = folder / EVALUATIONS
        self.known: dict[tuple[float, ...], ObjectiveValue] = {}
        self.total: dict[tuple[float, ...], float] = {}
        for line in recover_lines(self.path):
            entry = json.loads(line)
            self.known[tuple(entry["ratios"])] = ObjectiveValue(**entry["evaluation"])

    def __call__(self, unknowns: Vector) -> tuple[float, Vector]:
        ratios = self.region.ratios(unknowns)
        key = tuple(ratios)
        found = self.known.get(key)
        if found is None:
            found = self._evaluate(ratios)
            self.known[key] = found
        value, gradient = self._with_penalty(ratios, found)
        if key not in self.total:
            self.total[key] = value
            names = {f"ratio/{name}": ratio for name, ratio in zip(self.problem.names, ratios, strict=True)}
            self.log(len(self.total), {"loss": value, **names})
        return value, self.region.reduce(gradient)

    @property
    def best(self) -> tuple[list[float], float]:
        """The best ratios so far, and their value."""
        ratios = min(self.total, key=lambda key: self.total[key])
        return list(ratios), self.total[ratios]

    def stop_if_enough(self, _: Any) -> None:
        """End the search once as many evaluations were made as are allowed."""
        if len(self.total) >= self.problem.max_evaluations:
            raise StopIteration

    def _evaluate(self, ratios: list[float]) -> ObjectiveValue:
        problem = self.problem
        problem.likelihood.model.set_ratios(ratios)
        label = f"evaluation {len(self.total) + 1}"
        found = problem.likelihood.evaluate(problem.rows, problem.batch_size, gradient=True, label=label)
        if not np.isfinite(found.value):
            raise UserError(f"the likelihood of the rows is {found.value} at the ratios {ratios}; check the models")
        if PartialState().is_main_process:
            with growing(self.path) as write:
                write(json.dumps({"ratios": ratios, "evaluation": asdict(found)}) + "\n")
        return found

    def _with_penalty(self, ratios: list[float], found: ObjectiveValue) -> tuple[float, list[float]]:
        if self.problem.pull is None:
            return found.value, found.gradient
        there = torch.tensor(ratios, dtype=torch.float64, requires_grad=True)
        penalty = self.problem.pull(there, self.region.base)
        (gradient,) = torch.autograd.grad(penalty, there)
        return found.value + float(penalty.detach()), (np.array(found.gradient) + gradient.numpy()).tolist()
