"""``solver=published``: AdamW on raw values, a few rows a step, as in the paper's Table 4 or the release's script."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from accelerate import PartialState
from torch.optim import SGD
from transformers import get_scheduler

from reproalign.ama.adapt.optimizer import RawOptimizer
from reproalign.ama.adapt.parametrisation import Normalised, Parametrisation, Stale
from reproalign.ama.adapt.rows import TokenRow
from reproalign.ama.adapt.settings import SolverSteps
from reproalign.ama.adapt.solution import Log, Problem, Solution
from reproalign.ama.ratios import reachable
from reproalign.common.console import track
from reproalign.common.errors import UserError
from reproalign.common.signing import read_signed, write_signed

STATE = "state.json"


def solve_published(problem: Problem, epsilon: float, folder: Path, log: Log) -> Solution:
    """Step through the rows; an interrupted run goes on from its last state, to the same bits.

    Args:
        problem: rows, model, options.
        epsilon: ε.
        folder: of the state.
        log: takes step and numbers.

    Raises:
        UserError: if the bound in [0, 1] was asked for and this ε does not keep it.
    """
    settings, steps = problem.settings, problem.settings.steps
    parametrisation = _parametrisation(problem, epsilon)
    optimizer = RawOptimizer(
        parametrisation.start,
        weight_decay=steps.weight_decay,
        multiplicity=problem.multiplicity if settings.variant.release_loop else None,
        clear=not settings.variant.release_loop,
    )
    batches = list(_batches(problem.rows, steps, problem.seed))
    rates = learning_rates(steps, len(batches))
    state = read_signed(folder / STATE) or {"step": 0}
    rows: list[tuple[int, dict[str, float]]] = []

    def keep(step: int, numbers: dict[str, float]) -> None:
        rows.append((step, numbers))
        log(step, numbers)

    if state["step"]:
        optimizer.load(state["optimizer"])
        for step, numbers in state.get("rows", []):  # an earlier version kept none
            keep(step, numbers)
    main = PartialState().is_main_process
    label = f"adapting, ε {epsilon:g}"
    for step in track(range(state["step"], len(batches)), label, done=state["step"], shown=main):
        raw = optimizer.raw
        problem.likelihood.model.set_ratios(parametrisation.in_force(raw).double())
        found = problem.likelihood.evaluate(batches[step], _share(len(batches[step])), gradient=True)
        gradient = torch.tensor(found.gradient, dtype=torch.float64)
        optimizer.step(parametrisation.pull_back(raw, gradient), rates[step])
        numbers = {"loss": found.value + parametrisation.penalty(raw), "learning_rate": rates[step]}
        keep(step + 1, numbers | _named(problem.names, parametrisation.saved(optimizer.raw).tolist()))
        if main and ((step + 1) % steps.save_steps == 0 or step + 1 == len(batches)):
            write_signed(folder / STATE, {"step": step + 1, "optimizer": optimizer.state(), "rows": rows})
    ratios = parametrisation.saved(optimizer.raw).tolist()
    return Solution(ratios, len(batches), {"sum_of_learning_rates": math.fsum(rates)})


def learning_rates(steps: SolverSteps, count: int) -> list[float]:
    """Return the learning rate of each of ``count`` steps."""
    optimizer = SGD([torch.zeros(())], lr=steps.learning_rate)
    warmup = math.ceil(steps.warmup_ratio * count)
    schedule = get_scheduler(steps.schedule, optimizer, num_warmup_steps=warmup, num_training_steps=count)
    rates = []
    for _ in range(count):
        rates.append(float(schedule.get_last_lr()[0]))
        optimizer.step()
        schedule.step()
    return rates


def _parametrisation(problem: Problem, epsilon: float) -> Parametrisation:
    settings = problem.settings
    if settings.variant.release_loop:
        count = len(problem.names)
        with_base = len(problem.likelihood.model.names) > count
        return Stale(settings.base, epsilon, count, problem.pull, with_base)
    highest = max(top for _, top in reachable(settings.base, epsilon, problem.weights, settings.normalisation))
    if settings.bounded and highest > 1:
        raise UserError(
            f"bounds=unit: with alpha={settings.base:g} (on pre) and epsilon={epsilon:g} a ratio can reach "
            f"{highest:.4g}; take a larger epsilon, solver=exact, or bounds=none"
        )
    return Normalised(settings.base, epsilon, problem.weights, settings.normalisation, problem.pull)


def _batches(rows: Sequence[TokenRow], steps: SolverSteps, seed: int) -> Iterator[list[TokenRow]]:
    """Yield the rows of each step, shuffled anew in every epoch; of several processes the first one's."""
    for epoch in range(steps.epochs):
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed + epoch)).tolist()
        size = steps.batch_size
        batches = ([rows[index] for index in order[start : start + size]] for start in range(0, len(rows), size))
        yield from islice(batches, 0, None, steps.processes)


def _share(count: int) -> int:
    """Return how many rows of a step one process takes at once."""
    return -(-count // int(PartialState().num_processes))


def _named(names: Sequence[str], ratios: Sequence[float]) -> dict[str, float]:
    return {f"ratio/{name}": ratio for name, ratio in zip(names, ratios, strict=True)}
