"""``dtm study curves``: scores and held-out loss against the fraction of the data, the published curves beside."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import NormalDist
from typing import Any

from rich.table import Table

from reproalign.common.console import result_console, say
from reproalign.common.errors import UserError
from reproalign.common.evaluation.plots import MeanCurve as Line
from reproalign.common.evaluation.plots import comparison
from reproalign.common.files import csv_text, sha256_file, write_json, write_text
from reproalign.common.invocation import Invocation
from reproalign.common.records import Run
from reproalign.common.records.paper import load_paper
from reproalign.dtm.study.claims_verb import CURVES, PACKAGE
from reproalign.dtm.study.config import CurvesConfig
from reproalign.dtm.study.course import Course, course
from reproalign.dtm.study.results import RESULTS, EvaluationRun, check_same_rows, read_evaluation
from reproalign.dtm.study.scores import BenchmarkScore, suite_row

LOSS = "loss"
Points = dict[str, dict[float, BenchmarkScore]]  # measure -> fraction -> score


def curves(config: CurvesConfig, invocation: Invocation) -> None:
    """Draw scores over fractions of the data; train and evaluate what is drawn, as child runs, unless ``runs`` are
    given.

    Written are ``curves.json``, ``curves.csv`` and ``plots/curves.png``: each measure with its base, peak and final
    value, final minus peak and final minus base, and the paper's Figures 1 to 3 beside.

    Raises:
        UserError: for a mistake in the options, those of the children included, before anything is run.
        ReportedError: if a child failed; the same command goes on from it.
    """
    from reproalign.dtm.study.curves_plan import check_plan, make_plan, run_plan

    if config.runs is None:
        check_plan(config)
        plan = make_plan(config, invocation)
        with Run.open(invocation) as run:
            folders, at = run_plan(plan, run)
            _report(read_points(folders, at), run)
        return
    _check_given(config)
    points = read_points(config.runs, config.at or [])
    with Run.open(invocation) as run:
        for folder in config.runs:
            run.add_fingerprint("data", folder, sha256_file(Path(folder).expanduser() / RESULTS))
        _report(points, run)


def show_plan(config: CurvesConfig, invocation: Invocation) -> None:
    """Print the command lines of the child runs, or that the given runs can be read."""
    from reproalign.dtm.study.curves_plan import check_plan, make_plan

    if config.runs is not None:
        _check_given(config)
        read_points(config.runs, config.at or [])
        print(f"{len(config.runs)} evaluations can be read")
        return
    check_plan(config)
    for child in make_plan(config, invocation).children:
        print(shlex.join(child.invocation.command))


def read_points(folders: Sequence[str], at: Sequence[float]) -> Points:
    """Read evaluations of rows and of suites, each at its fraction.

    Raises:
        UserError: for a folder that holds neither, two values at one fraction, losses of different rows, or no model
            that was trained.
    """
    paper = load_paper(PACKAGE)
    points: Points = {}
    losses: list[EvaluationRun] = []
    for folder, fraction in zip(folders, at, strict=True):
        row: dict[str, BenchmarkScore]
        if _is_suite(folder):
            row = suite_row(folder, paper, f"runs: {folder}")
        else:
            losses.append(read_evaluation(folder))
            row = {LOSS: _loss(losses[-1])}
        for name, score in row.items():
            if fraction in points.setdefault(name, {}):
                raise UserError(
                    f"runs: {folder} is a second value of {name} at the fraction {fraction:g}; give one each"
                )
            points[name][fraction] = score
    if len(losses) > 1:
        check_same_rows(losses)
    for name, found in points.items():
        if max(found) == 0:
            raise UserError(
                f"runs: {name} is known of the base model alone (fraction 0); give evaluations of trained ones"
            )
    return points


def _is_suite(folder: str) -> bool:
    path = Path(folder).expanduser() / RESULTS
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False  # read_evaluation says what is wrong
    return isinstance(found, dict) and isinstance(found.get("rows"), list)


def _loss(evaluation: EvaluationRun) -> BenchmarkScore:
    """Return the loss; its interval's half width stands for as many standard errors as a normal one would have."""
    overall, interval = evaluation.results["measures"][0], evaluation.results["interval"]
    if overall["low"] is None:
        return BenchmarkScore(evaluation.loss)
    widths = NormalDist().inv_cdf((1 + interval["confidence"]) / 2)
    return BenchmarkScore(evaluation.loss, (overall["high"] - overall["low"]) / 2 / widths)


def _check_given(config: CurvesConfig) -> None:
    runs, at = config.runs or [], config.at or []
    if not runs:
        raise UserError("runs=[] names no evaluation; give folders of `dtm evaluate`, or leave runs out to train here")
    if len(at) != len(runs):
        raise UserError(f"at names {len(at)} fractions for {len(runs)} runs; give one for each, 0 for the base model")
    for name in ("train", "evaluate", "benchmarks", "evaluate_on"):
        if getattr(config, name):
            raise UserError(f"{name} is for trainings that this command starts; with runs leave it out")
    if config.model.name:
        raise UserError("model.name is for trainings that this command starts; with runs leave it out")


def _report(points: Points, run: Run) -> None:
    paper = load_paper(PACKAGE)
    found = {name: course(entries, lower_is_better=name == LOSS) for name, entries in points.items()}
    write_json(
        run.dir / CURVES,
        {"curves": {name: asdict(entry) for name, entry in found.items()}, "published": paper["curves"]},
    )
    write_text(run.dir / "curves.csv", _csv(found))
    comparison(_panels(found, paper), run.dir / "plots" / "curves.png", across="fraction of the data")
    run.set_metrics({name: _ends(entry) for name, entry in found.items()})
    console = result_console()
    console.print(_table(found, paper))
    console.print("final minus peak is the tax that the paper speaks of; final minus base says what is left")
    say(f"record, {CURVES}, curves.csv and plot: {run.dir}")


def _ends(entry: Course) -> dict[str, float | None]:
    return {name: value for name, value in asdict(entry).items() if not isinstance(value, list)}


def _panels(found: Mapping[str, Course], paper: Mapping[str, Any]) -> dict[str, dict[str, Line]]:
    """Return a panel for each measure of ours, and the published ones of MMLU and BBH."""
    panels: dict[str, dict[str, Line]] = {}
    for name, entry in found.items():
        ends = [2 * (error or 0.0) for error in entry.stderr]
        lows = [value - end for value, end in zip(entry.values, ends, strict=True)]
        highs = [value + end for value, end in zip(entry.values, ends, strict=True)]
        title = "held-out loss, nats per token" if name == LOSS else name
        panels[title] = {"here (± 2 standard errors)": Line(entry.fractions, entry.values, lows, highs)}
    for entry in paper["curves"].values():
        line = Line(entry["fractions"], entry["values"], entry["values"], entry["values"])
        panels.setdefault(entry["benchmark"], {})[f"Figure {entry['figure']}, {entry['setting']}, {entry['data']}"] = (
            line
        )
    return panels


def _table(found: Mapping[str, Course], paper: Mapping[str, Any]) -> Table:
    table = Table("curve", header_style="bold")
    for name in ("base", "peak", "at", "final", "minus peak", "minus base"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, entry in found.items():
        table.add_row(f"{name}, here", *_cells(entry, 4 if name == LOSS else 2))
    table.add_section()
    for entry in paper["curves"].values():
        base = paper["results"].get(entry["setting"], {}).get("base", {}).get(entry["benchmark"])
        points = dict(zip(entry["fractions"], map(BenchmarkScore, entry["values"]), strict=True))
        if 0.0 not in points and base is not None:
            points[0.0] = BenchmarkScore(base)
        label = f"{entry['benchmark']}, Fig. {entry['figure']}, {entry['setting']}"
        table.add_row(label, *_cells(course(points), 2))
    return table


def _cells(entry: Course, digits: int) -> list[str]:
    def written(value: float | None, sign: str = "") -> str:
        return "" if value is None else f"{value:{sign}.{digits}f}"

    return [
        written(entry.base),
        written(entry.peak),
        f"{entry.peak_at:.0%}",
        written(entry.final),
        written(entry.final_minus_peak, "+"),
        written(entry.final_minus_base, "+"),
    ]


def _csv(found: Mapping[str, Course]) -> str:
    rows = [
        (name, fraction, repr(value), "" if error is None else repr(error))
        for name, entry in found.items()
        for fraction, value, error in zip(entry.fractions, entry.values, entry.stderr, strict=True)
    ]
    return csv_text(["measure", "fraction", "value", "stderr"], rows)
