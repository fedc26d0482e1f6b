"""From a suite to tasks with their data, checked before any model is loaded."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from reproalign.common.errors import UserError, choose, did_you_mean
from reproalign.common.evaluation.suites.catalogue import (
    defined_in,
    is_group,
    is_weighted,
    lm_eval_version,
    manager_of,
    subtasks,
)
from reproalign.common.evaluation.suites.config import BenchmarkConfig, SuiteConfig
from reproalign.common.evaluation.suites.loading import LoadedTask, Recipe, load
from reproalign.common.evaluation.suites.local import task_folders
from reproalign.common.evaluation.suites.tasks import RUNS_CODE, own_tasks


@dataclass(frozen=True)
class Benchmark:
    """One benchmark of a suite and the evaluations that its number is made from.

    Attributes:
        name: in the suite.
        config: metric, scale, note.
        evaluations: names; several for a group.
        known: how many subtasks the group has; 1 for a task.
        weighted: whether subtasks count by their questions; None for a group without a number of its own.
    """

    name: str
    config: BenchmarkConfig
    evaluations: tuple[str, ...]
    known: int = 1
    weighted: bool | None = True


@dataclass(frozen=True)
class PreparedSuite:
    """A suite whose data are loaded."""

    benchmarks: tuple[Benchmark, ...]
    evaluations: dict[str, LoadedTask]


@contextmanager
def quiet() -> Iterator[None]:
    """Keep lm-eval's notes and the bars of ``datasets`` off the terminal; lm-eval's bars of requests stay."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    logger = logging.getLogger("lm_eval")
    level, disabled = logger.level, are_progress_bars_disabled()
    logger.setLevel(logging.ERROR)
    disable_progress_bars()
    try:
        yield
    finally:
        if not disabled:
            enable_progress_bars()
        logger.setLevel(level)


@quiet()
def prepare(suite: SuiteConfig) -> PreparedSuite:
    """Load the tasks and data of a suite.

    Raises:
        UserError: for an unknown task, metric or split, a file or column that is missing, rows that a task cannot read,
            data that the Hub does not give, or programs of a model that may not be run.
    """
    benchmarks: list[Benchmark] = []
    evaluations: dict[str, LoadedTask] = {}
    made: list[tuple[Recipe, str]] = []  # two metrics of one task share its evaluation
    for name in check_suite(suite):
        config = suite.benchmark(name)
        recipes, known, weighted = _recipes(suite, name, config)
        used = []
        for evaluation, recipe in recipes.items():
            shared = next((other for earlier, other in made if earlier == recipe), evaluation)
            if shared not in evaluations:
                made.append((recipe, evaluation))
                evaluations[evaluation] = load(recipe, evaluation)
            _check_metric(name, config, evaluations[shared].task)
            used.append(shared)
        benchmarks.append(Benchmark(name, config, tuple(used), known, weighted))
    return PreparedSuite(tuple(benchmarks), evaluations)


def check_suite(suite: SuiteConfig) -> list[str]:
    """Check what can be checked without data, and return the names of the tasks.

    Raises:
        UserError: for a wrong option, an unknown task, or programs of a model that may not be run.
    """
    lm_eval_version()
    suite.check()
    names = _names(suite)
    _check_code(suite, names)
    return names


def _names(suite: SuiteConfig) -> list[str]:
    names = list(dict.fromkeys(suite.tasks or []))
    if not names:
        raise UserError("suite.tasks is empty; name what is to be run, e.g. suite.tasks=[piqa]")
    own = own_tasks(suite.code_timeout, suite.code_memory)
    tasks = {name: suite.benchmark(name).task or name for name in names}
    for task in tasks.values():
        if task not in own and task not in defined_in():
            hint = did_you_mean(task, [*suite.benchmarks, *own]) or did_you_mean(task, defined_in())
            raise UserError(
                f"suite.tasks: no benchmark of suite={suite.name} and no task of lm-eval {lm_eval_version()} is named "
                f"'{task}'{hint}; the suite has {', '.join(suite.benchmarks) or 'none'}"
            )
    for name in suite.data:
        if name not in (*names, *tasks.values()):
            hint = did_you_mean(name, names)
            raise UserError(f"suite.data.{name}: not among suite.tasks{hint}; leave it out, or add it there")
    return names


def _check_code(suite: SuiteConfig, names: Sequence[str]) -> None:
    running = [name for name in names if (suite.benchmark(name).task or name) in RUNS_CODE]
    if running and not suite.run_code:
        others = ",".join(name for name in names if name not in running)
        raise UserError(
            f"{', '.join(running)}: programs that the model writes would be run here; allow it with "
            f"suite.run_code=true, best in a container{f', or set suite.tasks=[{others}]' if others else ''}"
        )


def _recipes(suite: SuiteConfig, name: str, config: BenchmarkConfig) -> tuple[dict[str, Recipe], int, bool | None]:
    """Return what a benchmark's evaluations are made from, by their names, and what :class:`Benchmark` says of it."""
    task, limits = config.task or name, (suite.code_timeout, suite.code_memory)
    data = suite.data.get(name, suite.data.get(task))

    def recipe(task: str, data: Any) -> Recipe:
        return Recipe(task, config.shots, data, config.overrides, limits, name, tuple(config.columns))

    if task in own_tasks(*limits) or not is_group(task, manager_of(task)):
        return {name: recipe(task, data)}, 1, True
    manager = manager_of(task)
    members = subtasks(task, manager)
    given: Mapping[str, Any] = dict.fromkeys(members)
    if data is not None:
        given = _given(suite, f"suite.data.{name}", data, members, manager)
    recipes = {f"{name}/{member}": recipe(member, value) for member, value in given.items()}
    return recipes, len(members), is_weighted(task, manager)


def _given(suite: SuiteConfig, key: str, data: Any, members: Sequence[str], manager: Any) -> dict[str, Any]:
    """Return the folders of a group's subtasks."""
    folders = {member: str(manager.task_index[member].cfg.get("dataset_name") or member) for member in members}
    given = task_folders(data, folders, key)
    missing = [folders[member] for member in members if member not in given]
    if missing and suite.missing_subtasks == "error":
        raise UserError(
            f"{key}={data}: {len(missing)} of {len(members)} subtasks have no folder there ({', '.join(missing[:3])} "
            "…); add them, or set suite.missing_subtasks=skip for a number on the others alone"
        )
    return given


def _check_metric(name: str, config: BenchmarkConfig, task: Any) -> None:
    key = f"suite.benchmarks.{name}"
    if config.metric is not None:
        choose(f"{key}.metric", config.metric, task.aggregation())
    if config.filter is not None:
        filters = task.config.filter_list or [{"name": "none"}]
        choose(f"{key}.filter", config.filter, [entry["name"] for entry in filters])
