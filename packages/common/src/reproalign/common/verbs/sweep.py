"""Several runs of one verb in one command: over seeds (``seeds=[1,2,3]``), over keys (``sweep.KEY=[A,B]``), or both.

Every combination is a child run with a folder and a resumable record of its own; the parent's record holds the means
over seeds, how far the runs spread, and the differences between settings.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reproalign.common.errors import UserError
from reproalign.common.invocation import Invocation, read_back, structured
from reproalign.common.launch.children import Child, check_launches, naming
from reproalign.common.launch.together import run_children
from reproalign.common.models.named import check_named_models
from reproalign.common.options import option, output_dir
from reproalign.common.options.load import load_object
from reproalign.common.options.words import as_word
from reproalign.common.records import Run
from reproalign.common.records.folder import read_record
from reproalign.common.verbs.sweep_report import SweptRun, report

VERB = ("name", "schema", "target", "check")  # fields of Verb that a sweep keeps


@dataclass
class SweepConfig:
    """What is run several times: made from the words of the command, and kept in the record as values."""

    output_dir: str = output_dir()
    words: list[str] = option([], help="key=value of every run as it was given, for the commands of the runs")
    verb: dict[str, str] = option({}, help="what every run does: its fields of Verb")
    seeds: list[int] | None = option(None, help="seeds of the runs", null="that of the words, once", at_least=0)
    sweep: dict[str, list[Any]] = option({}, help="values of keys; every combination is run")
    run: dict[str, Any] = option({}, help="configuration of the first run")
    runs: dict[str, dict[str, Any]] = option({}, help="of each run, by its folder, what is not as in the first")
    at_once: int | None = option(
        None, help="runs at the same time", types=(int,), at_least=1, null="as many as the GPUs hold, one without GPUs"
    )
    resume: str = option("auto", help="go on with what is unfinished", choices={"auto": "", "never": ""})


@dataclass(frozen=True)
class Planned:
    """A run of a sweep.

    Attributes:
        child: the run.
        setting: key -> value of what is swept.
        seed: its seed; None where seeds are not swept.
    """

    child: Child
    setting: dict[str, Any]
    seed: int | None


def sweep(config: SweepConfig, invocation: Invocation) -> None:
    """Run every combination, finished ones kept and interrupted ones resumed; then table, CSV, JSON and plots.

    Raises:
        UserError: for a mistake in the options of a run, before anything is run.
        ReportedError: if a run failed; the others are kept, and the same command goes on.
    """
    planned = plan_sweep(config, invocation)
    with Run.open(invocation) as run:
        folders = run_children(run, [entry.child for entry in planned], at_once=config.at_once)
        results = [
            SweptRun(entry.setting, entry.seed, folder, read_record(folder))
            for entry, folder in zip(planned, folders, strict=True)
        ]
        report(run, results)


def show_plan(config: SweepConfig, invocation: Invocation) -> None:
    """Print the command lines of the runs.

    Raises:
        UserError: for a mistake in the options of a run, or a model that is not there.
    """
    children = [entry.child for entry in plan_sweep(config, invocation)]
    for child in children:
        with naming(child.name):
            check_named_models(structured(child.invocation.schema, child.invocation.config))
    for child in children:
        print(shlex.join(child.invocation.command))


def plan_sweep(config: SweepConfig, invocation: Invocation) -> list[Planned]:
    """Return the runs, from their recorded values, and check all that can be checked of each.

    Raises:
        UserError: naming the run.
    """
    verb, schema, target, check = (config.verb[key] for key in VERB)
    planned = []
    for name, (setting, seed) in combinations(config).items():
        folder = str(Path(config.output_dir) / name)
        words = [*config.words, *swept_words(setting, seed), as_word("output_dir", folder)]
        child = Invocation(
            command=[invocation.command[0], *verb.split(), *words],
            package=invocation.package,
            verb=verb,
            schema=schema,
            target=target,
            config={**config.run, **config.runs[name], "output_dir": folder},
            recipe=recipe_of(words),
            parent=config.output_dir,
        )
        with naming(name):
            options = _options(schema, child.config)
            if check:
                load_object(check)(options)
        planned.append(Planned(Child(name, child), setting, seed))
    check_launches(entry.child for entry in planned)
    return planned


def _options(schema: str, config: dict[str, Any]) -> Any:
    try:
        return read_back(schema, config)
    except UserError as error:  # composed by another version
        remedy = "replay them with the version that the run.json names"
        raise UserError(f"the recorded options are not this version's ({error}); {remedy}") from error


def combinations(config: SweepConfig) -> dict[str, tuple[dict[str, Any], int | None]]:
    """Return every setting with every seed, by the name of its run's folder."""
    settings = [dict(zip(config.sweep, values, strict=True)) for values in itertools.product(*config.sweep.values())]
    labels = zip(settings, _setting_names(settings), strict=True)
    seeds: list[int | None] = [None] if config.seeds is None else list(config.seeds)
    return {
        "-".join(filter(None, [label, "" if seed is None else f"seed-{seed}"])): (setting, seed)
        for (setting, label), seed in itertools.product(labels, seeds)
    }


def swept_words(setting: Mapping[str, Any], seed: int | None) -> list[str]:
    """Return the words by which a run of a sweep is told from the others."""
    return [as_word(key, value) for key, value in {**setting, **({} if seed is None else {"seed": seed})}.items()]


def recipe_of(words: Sequence[str]) -> str | None:
    """Return the recipe that words name."""
    return next((word.partition("=")[2] for word in reversed(words) if word.startswith("experiment=")), None)


def _setting_names(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Name folders after the swept values, ``beta-0.1``; with a number where two would have one name."""
    names = []
    for number, setting in enumerate(settings):
        parts = [f"{key.rpartition('.')[2]}-{_plain(value)}" for key, value in setting.items()]
        name = "-".join(parts)
        names.append(f"{name}-{number}" if name in names else name)
    return names


def _plain(value: Any) -> str:
    return re.sub(r"[^\w.+-]+", "_", str(value)).strip("_")[-40:] or "empty"


def check_values(key: str, values: Any) -> list[Any]:
    """Return the values of ``seeds`` or of a swept key.

    Raises:
        UserError: if they are no list, an empty one, or one is given twice.
    """
    if not isinstance(values, list) or not values:
        raise UserError(f"{key} takes a list of values; write {key}=[A,B]")
    if any(value in values[:number] for number, value in enumerate(values)):
        raise UserError(f"{key}={values} names a value twice")
    if key == "seeds":
        wrong = [value for value in values if isinstance(value, bool) or not isinstance(value, int)]
        if wrong:
            raise UserError(f"seeds={values}: {wrong[0]} is no seed; give whole numbers")
    return values
