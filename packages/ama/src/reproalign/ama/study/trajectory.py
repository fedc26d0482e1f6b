"""``ama study trajectory``: reward and tasks along a training (Fig. 12), or the fronts of algorithms (Fig. 14)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from reproalign.ama.study.config import TrajectoryConfig
from reproalign.ama.study.fronts import TITLES, line_of, sweep_lines
from reproalign.ama.study.plots import Line, draw_fronts
from reproalign.ama.study.published import published_points
from reproalign.ama.study.reading import add_fingerprints, read_results
from reproalign.ama.study.results import Results, make_results
from reproalign.common.errors import UserError
from reproalign.common.files import csv_text, write_text
from reproalign.common.invocation import Invocation
from reproalign.common.records import Run

KINDS = ("training", "algorithms")


def trajectory(config: TrajectoryConfig, invocation: Invocation) -> None:
    """Draw tasks against the reward: θ_0, the checkpoints of a training and θ; or the MA fronts of all algorithms.

    Checkpoints are points of method ``early``. Those whose ``value`` is a number stand in the order of it; others,
    whose place in the training is not told, in the order of their reward, as Figure 12 draws them. The paper's series
    are panels of their own, since rewards of two reward models have no common scale. Written are ``trajectory.csv`` and
    ``plots/trajectory.png``.

    Raises:
        UserError: for results that cannot be read or have no such points, or a metric that nothing has.
    """
    if config.kind != "training" and config.algorithm != TrajectoryConfig.algorithm:
        raise UserError(f"algorithm is of kind=training; remove it for kind={config.kind}, which draws all of them")
    points = read_results(config.results, {}, config.rule)
    sources: list[tuple[str, Results]] = []
    if config.published:
        sources.append(("paper", make_results(published_points(), {})))
    if points:
        sources.append(("here", make_results(points, {})))
    if not sources:
        raise UserError("published=false leaves nothing to draw; give results=[points.csv,…] too")
    if not config.metrics:
        raise UserError("metrics is empty; name at least one, such as reading")
    panels: list[tuple[str, str, list[Line]]] = []
    rows: list[list[Any]] = []
    for name, results in sources:
        found = [(metric, _lines(results, metric, config)) for metric in config.metrics]
        if not any(lines for _, lines in found):
            raise UserError(_nothing(name, results, config))
        panels += [(f"{name}, {TITLES.get(metric, metric)}", metric, lines) for metric, lines in found]
        rows += [row for metric, lines in found for line in lines for row in _rows(name, metric, line)]
    with Run.open(invocation) as run:
        add_fingerprints(run, config.results)
        _report(panels, rows, run)


def training_points(results: Results, algorithm: str) -> list[int]:
    """Return θ_0, the checkpoints of a training and θ, in the order of the training as far as it is known."""
    checkpoints = results.find(method="early", algorithm=algorithm)
    numbers = {index: results.points[index].value for index in checkpoints}
    if checkpoints and all(value.isdecimal() for value in numbers.values()):
        checkpoints.sort(key=lambda index: int(numbers[index]))
    else:
        checkpoints.sort(key=lambda index: float(results.values[index, 0]))
    ends = (results.pre(algorithm), results.post(algorithm))
    return [index for index in (ends[0], *checkpoints, ends[1]) if index is not None] if checkpoints else []


def _lines(results: Results, metric: str, config: TrajectoryConfig) -> list[Line]:
    if metric not in results.metrics:
        return []
    if config.kind == "algorithms":
        return sweep_lines(results, metric, ("ma",))
    known = results.known(training_points(results, config.algorithm), metric)
    return [line_of(results, known, metric, f"training ({config.algorithm.upper()})")] if len(known) > 1 else []


def _nothing(name: str, results: Results, config: TrajectoryConfig) -> str:
    """Say what the points lack."""
    wanted = "an MA sweep" if config.kind == "algorithms" else f"checkpoints (method early) of {config.algorithm}"
    have = ", ".join(results.metrics[1:]) or "no task"
    whose = "the paper's series" if name == "paper" else "the results"
    return f"{whose} have no {wanted} with {', '.join(config.metrics)}; metrics there: {have}"


def _rows(name: str, metric: str, line: Line) -> list[list[Any]]:
    return [[name, line.label, metric, place, x, y] for place, (x, y) in enumerate(zip(line.x, line.y, strict=True))]


def _report(panels: Sequence[tuple[str, str, list[Line]]], rows: Sequence[Sequence[Any]], run: Run) -> None:
    console = Console()
    header = ["numbers", "series", "metric", "place", "reward", "score"]
    table = Table(*header, header_style="bold")
    for row in rows:
        table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row))
    console.print(table)
    write_text(run.dir / "trajectory.csv", csv_text(header, rows))
    draw_fronts(panels, run.dir / "plots" / "trajectory.png")
    run.set_metrics({"points": len(rows)})
    console.print(f"record, trajectory.csv and plot: {run.dir}", highlight=False, markup=False)
