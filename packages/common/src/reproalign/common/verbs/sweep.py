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
from typing import Any

from reproalign.common.errors import UserError
from reproalign.common.invocation import Invocation, Verb, structured
from reproalign.common.launch.children import Child, check_launches, naming, plan_child
from reproalign.common.launch.together import run_children
from reproalign.common.options import option, output_dir
from reproalign.common.options.load import load_object
from reproalign.common.options.words import as_word
from reproalign.common.records import Run
from reproalign.common.records.folder import read_record
from reproalign.common.verbs.sweep_report import SweptRun, report

VERB = ("name", "config_name", "schema", "target", "check")  # fields of Verb that a sweep keeps


@dataclass
class SweepConfig:
    """What is run several times; made from the words of the command, and kept in the record."""

    output_dir: str = output_dir()
    words: list[str] = option([], help="key=value of every run")
    verb: dict[str, str] = option({}, help="what every run does: its fields of Verb")
    seeds: list[int] | None = option(None, help="seeds of the runs", null="that of the words, once", at_least=0)
    sweep: dict[str, list[Any]] = option({}, help="values of keys; every combination is run")
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
    """Print the command lines of the runs."""
    for entry in plan_sweep(config, invocation):
        print(shlex.join(entry.child.invocation.command))


def plan_sweep(config: SweepConfig, invocation: Invocation) -> list[Planned]:
    """Compose the runs, and check all that can be checked of each.

    Raises:
        UserError: naming the run.
    """
    name, config_name, schema, target, check = (config.verb[key] for key in VERB)
    verb = Verb(name, "", config_name, schema, target, check=check)
    settings = [dict(zip(config.sweep, values, strict=True)) for values in itertools.product(*config.sweep.values())]
    seeds: list[int | None] = list(config.seeds) if config.seeds is not None else [None]
    names = _setting_names(settings)
    planned = []
    for (setting, label), seed in itertools.product(zip(settings, names, strict=True), seeds):
        name = "-".join(filter(None, [label, "" if seed is None else f"seed-{seed}"]))
        words = [*config.words, *(as_word(key, value) for key, value in setting.items())]
        words += [] if seed is None else [as_word("seed", seed)]
        child = plan_child(invocation, name, verb, words)
        with naming(name):
            if verb.check:
                load_object(verb.check)(structured(child.invocation.schema, child.invocation.config))
        planned.append(Planned(child, setting, seed))
    check_launches(entry.child for entry in planned)
    return planned


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
