"""One task with its data as lm-eval's object; whatever is wrong with either becomes one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from reproalign.common.errors import UserError
from reproalign.common.evaluation.suites.catalogue import manager_of
from reproalign.common.evaluation.suites.local import check_columns, local_overrides
from reproalign.common.evaluation.suites.tasks import build, own_tasks

# What a row of another schema ends in, in lm-eval's templates and functions.
MISFITS = (KeyError, IndexError, TypeError, ValueError, AttributeError, SyntaxError, jinja2.TemplateError)


@dataclass(frozen=True)
class LoadedTask:
    """One task as it will be evaluated.

    Attributes:
        name: in results and files: the benchmark's, and for a group ``benchmark/task``.
        task: lm-eval's object, with its data.
        shots: worked examples in the prompt.
        files: local data, if that is what is evaluated.
    """

    name: str
    task: Any
    shots: int
    files: tuple[Path, ...]


@dataclass(frozen=True)
class Recipe:
    """What an evaluation is made from; equal ones are evaluated once, whichever benchmarks need them.

    Attributes:
        task: of lm-eval, or of ours.
        shots: worked examples; None: the task's own number.
        data: local files, as the user gave them; None: the Hub.
        overrides: fields of lm-eval's task configuration.
        limits: seconds and GiB for a program that the model wrote.
        benchmark: that errors name.
        columns: that a row of local data needs.
    """

    task: str
    shots: int | None
    data: Any
    overrides: Mapping[str, Any]
    limits: tuple[float, float]
    benchmark: str = field(compare=False)
    columns: tuple[str, ...] = field(compare=False)

    @property
    def key(self) -> str:
        """Where the user gives the data."""
        return f"suite.data.{self.benchmark}"


def load(recipe: Recipe, name: str) -> LoadedTask:
    """Return the evaluation ``name``, with its data read and checked.

    Raises:
        UserError: for files, splits or columns that are missing, rows that the task cannot read, a number of shots that
            it does not take, and data that the Hub does not give.
    """
    own = own_tasks(*recipe.limits).get(recipe.task)
    config = own() if own else manager_of(recipe.task).task_index[recipe.task].cfg
    shots = _shots(config, recipe)
    overrides, files = dict(recipe.overrides), list[Path]()
    if recipe.data is not None:
        if "class" in config:
            raise UserError(f"{recipe.key}: lm-eval's '{recipe.task}' is a class of its own and takes no local data")
        local, files = local_overrides({**config, **overrides}, recipe.data, shots, recipe.key)
        check_columns(files, recipe.columns, recipe.key)
        overrides |= local
    task = _build(recipe, {**config, **overrides} if own else None, overrides)
    if shots:
        _check_examples(task, shots, recipe)
    if files:
        _check_rows(task, recipe.key)
    return LoadedTask(name, task, shots, tuple(files))


def _build(recipe: Recipe, own: dict[str, Any] | None, overrides: dict[str, Any]) -> Any:
    try:
        if own:
            return build(own)
        # A group around it, since a configuration alone is a new task and inherits nothing.
        group = {"group": "reproalign", "task": [{"task": recipe.task, **overrides}]}
        return manager_of(recipe.task).load(group)["tasks"][recipe.task]
    except UserError:
        raise
    except Exception as error:  # of templates and functions; of datasets and the Hub's client, which raise many kinds
        if recipe.data is not None:
            raise _misfit(recipe.key, recipe.task, error) from error
        raise UserError(
            f"the data of lm-eval's '{recipe.task}' cannot be loaded from the Hub ({_reason(error)}); check the "
            f"connection, or set {recipe.key}=FILE"
        ) from error


def _check_examples(task: Any, shots: int, recipe: Recipe) -> None:
    rows, config = len(list(task.sampler.fewshot_docs())), task.config
    needed = shots + (
        config.fewshot_split == config.test_split
    )  # lm-eval draws one more, not to show the question itself
    if rows < needed:
        pool = config.fewshot_split or config.training_split or config.validation_split or config.test_split
        raise UserError(
            f"{recipe.key}: {shots} worked examples need {needed} rows; split '{pool}' of '{recipe.task}' has {rows}: "
            f"give more, or set suite.benchmarks.{recipe.benchmark}.shots"
        )


def _check_rows(task: Any, key: str) -> None:
    """Render every question, so that a row that the task cannot read is found before a model is loaded."""
    for number, doc in enumerate(task.eval_docs, start=1):
        try:
            task.doc_to_text(doc)
            task.doc_to_target(doc)
            if task.config.doc_to_choice is not None:
                task.doc_to_choice(doc)
        except MISFITS as error:
            raise _misfit(f"{key}: row {number}", task.config.task, error) from error


def _misfit(place: str, task: str, error: BaseException) -> UserError:
    return UserError(f"{place}: not a row that lm-eval's '{task}' reads ({_reason(error)}); give the original columns")


def _shots(config: Mapping[str, Any], recipe: Recipe) -> int:
    own = config.get("num_fewshot")
    if own == 0 and recipe.shots:
        raise UserError(
            f"suite.benchmarks.{recipe.benchmark}.shots={recipe.shots}: '{recipe.task}' has a fixed prompt; set 0"
        )
    return (own or 0) if recipe.shots is None else recipe.shots


def _reason(error: BaseException) -> str:
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
