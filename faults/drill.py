"""The drill: plan trials, carry them out side by side, keep each one's outcome, and sum up."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

import psutil
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from faults import corruption, disks, endings, ranks
from faults.bases import Bases
from faults.cases import CASES, TOY, Case, chosen
from faults.forks import below
from faults.trials import GOOD, Kind, Outcome, Scene, Trial, as_row
from reproalign.common.console import result_console
from reproalign.common.files import write_json
from reproalign.common.journal import recover_lines

KINDS: dict[str, Kind] = {
    "controls": endings.control,
    "kills": endings.kill,
    "corruptions": corruption.corrupt,
    "starts": endings.start_twice,
    "signals": endings.send,
    "disks": disks.fill,
    "finished": corruption.corrupt_finished,
    "ranks": ranks.disturb,
    "ends": ranks.end_alone,
}
OF_TWO = {"ranks", "ends"}  # processes
FUZZ = "tests/test_fuzz.py"
COUNTS = {
    **{"controls": 40, "kills": 300, "corruptions": 500, "starts": 100, "signals": 50, "disks": 50},
    **{"finished": 100, "ranks": 24, "ends": 100},
}


def parsed(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="faults", description=__doc__)
    for kind, count in COUNTS.items():
        text = KINDS[kind].__doc__ or ""
        parser.add_argument(f"--{kind}", type=int, default=count, metavar="N", help=f"{text} (default: {count})")
    parser.add_argument("--examples", type=int, default=1000, metavar="N", help="of each fuzz test (default: 1000)")
    parser.add_argument("--only", nargs="+", default=[], metavar="CASE", help="cases whose names begin so")
    parser.add_argument("--toy", action="store_true", help="the toy paper of the tests alone")
    parser.add_argument("--seed", type=int, default=0, help="of all that is random (default: 0)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="trials side by side (default: every core)")
    parser.add_argument("--folder", type=Path, default=Path("runs/faults"), help="to work in (default: runs/faults)")
    parser.add_argument("--output", type=Path, default=Path("results/faults/drill.json"), help="of the summary")
    return parser.parse_args(argv)


def plan(options: argparse.Namespace, cases: Sequence[Case]) -> list[Trial]:
    """List the trials: of every kind as many as are asked for, its cases in turn."""
    fitting = {kind: [case for case in cases if case.two == (kind in OF_TWO)] for kind in KINDS}
    return [
        Trial(kind, options.seed, number, fitting[kind][number % len(fitting[kind])])
        for kind in KINDS
        for number in range(getattr(options, kind) if fitting[kind] else 0)
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Carry out the drill; 1 if anything was lost, kept quiet or ended in a traceback."""
    options = parsed(argv)
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    work = options.folder.resolve()
    work.mkdir(parents=True, exist_ok=True)
    known = TOY if options.toy else CASES
    cases = chosen(options.only, known)
    wanted = [case for case in cases if not options.only or case.name.startswith(tuple(options.only))]
    bases = Bases(work)
    with _progress() as progress:
        broken: dict[str, str] = {}
        for case in _tracked(progress, "undisturbed runs", cases):
            try:
                if not broken.keys() & set(case.needs):
                    bases.make(case)
            except RuntimeError as error:
                broken[case.name] = str(error)
        wanted = [case for case in wanted if bases.made(case) is not None]
        trials = plan(options, wanted)
        rows = {row["trial"]: row for row in map(json.loads, recover_lines(work / "trials.jsonl"))}
        left = [trial for trial in trials if trial.key not in rows]
        task = progress.add_task("trials", total=len(trials), completed=len(trials) - len(left))
        with (work / "trials.jsonl").open("a", encoding="utf-8") as stream:
            for row in _side_by_side(left, bases, options.jobs, progress):
                rows[row["trial"]] = row
                stream.write(json.dumps(row, ensure_ascii=False) + "\n")
                stream.flush()
                progress.advance(task)
    code = summed_up([rows[trial.key] for trial in trials], list(broken.values()), options)
    return _fuzz(options.examples, options.seed) or code


def _fuzz(examples: int, seed: int) -> int:
    """Run the tests that try made-up rows, recipes, words, plans and records, with many examples."""
    if not examples:
        return 0
    given = {"FUZZ_EXAMPLES": str(examples)}
    words = ["-q", FUZZ, f"--hypothesis-seed={seed}", "--override-ini=faulthandler_timeout=0"]  # a test may take long
    return subprocess.run([sys.executable, "-m", "pytest", *words], env=os.environ | given, check=False).returncode


def _side_by_side(trials: Sequence[Trial], bases: Bases, jobs: int, progress: Progress) -> Iterator[dict[str, Any]]:
    """Carry out trials in forks, ``jobs`` at a time, and yield what is kept of each as it ends."""
    waiting, running = list(reversed(trials)), dict[int, Trial]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                trial = waiting.pop()
                process = os.fork()
                if process == 0:
                    _carry_out(trial, bases)
                running[process] = trial
            process, _ = os.waitpid(-1, os.WNOHANG)
            if process:
                yield _kept(running.pop(process), bases)
            else:
                time.sleep(0.05)
            progress.refresh()
    finally:
        for process, trial in running.items():
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
            for left in below(_place(trial, bases)):
                with suppress(psutil.Error):
                    left.kill()


def _place(trial: Trial, bases: Bases) -> Path:
    return bases.work / "trials" / trial.key


def _carry_out(trial: Trial, bases: Bases) -> NoReturn:
    """Carry out a trial and leave what is kept of it beside its folder, which goes if all was well."""
    place, started = _place(trial, bases), time.monotonic()
    base = bases.made(trial.case)
    try:
        assert base is not None
        outcome = KINDS[trial.kind](Scene(trial.case, base, bases, place, trial.rng()))
    except Exception:
        outcome = Outcome("drill failed", "", traceback.format_exc())
    write_json(place.with_suffix(".json"), as_row(trial, outcome, time.monotonic() - started))
    if outcome.good:
        shutil.rmtree(place, ignore_errors=True)
    os._exit(0)


def _kept(trial: Trial, bases: Bases) -> dict[str, Any]:
    file = _place(trial, bases).with_suffix(".json")
    if not file.is_file():
        return as_row(trial, Outcome("drill failed", "", "the trial's process is gone"), 0)
    row: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    file.unlink()
    return row


def summed_up(rows: Sequence[Mapping[str, Any]], broken: Sequence[str], options: argparse.Namespace) -> int:
    """Print what was found, write it to ``options.output``, and return the exit code.

    Args:
        rows: what is kept of each trial.
        broken: what is wrong with cases that fail undisturbed.
        options: of the drill.
    """
    findings = [row for row in rows if not row["good"]]
    tables = {by: _counts(rows, by) for by in ("kind", "case")}
    console = result_console()
    for by, counts in tables.items():
        console.print(_table(by, counts))
    for row in findings:
        console.print(f"{row['outcome']}: {row['trial']}: {row['what']}: {row['said']}")
        console.print(f"    {row['command']}")
    for error in broken:
        console.print(error)
    console.print(f"{len(rows)} trials, {len(findings)} findings")
    facts = {"seed": options.seed, "python": platform.python_version(), "versions": _versions()}
    write_json(options.output, {**facts, "trials": len(rows), "counts": tables, "findings": findings, "broken": broken})
    return 1 if findings or broken else 0


def _counts(rows: Sequence[Mapping[str, Any]], by: str) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        counts.setdefault(row[by], Counter())[row["outcome"]] += 1
    return {name: dict(count) for name, count in counts.items()}


def _table(title: str, counts: Mapping[str, Mapping[str, int]]) -> Table:
    names = sorted({name for count in counts.values() for name in count}, key=lambda name: (name not in GOOD, name))
    table = Table(title, "trials", *names, header_style="bold")
    for row, count in counts.items():
        table.add_row(row, str(sum(count.values())), *(str(count.get(name, "")) for name in names))
    return table


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("reproalign-common", "torch", "transformers", "datasets")}


def _progress() -> Progress:
    """Bars without a thread of their own: forks would inherit its locks."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), auto_refresh=False)


def _tracked(progress: Progress, description: str, cases: Sequence[Case]) -> Iterator[Case]:
    task = progress.add_task(description, total=len(cases))
    for case in cases:
        progress.update(task, description=f"{description}: {case.name}")
        progress.refresh()
        yield case
        progress.advance(task)
    progress.update(task, description=description)
