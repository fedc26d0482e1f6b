"""The pictures of a frontier, and the page that holds its tables, pictures and commands."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from rich.table import Table

from reproalign.ama.frontier.collected import MeasuredModel
from reproalign.ama.frontier.config import FrontierConfig
from reproalign.ama.frontier.plan import FrontierPlan
from reproalign.ama.points import Measure, Point
from reproalign.ama.study.published import published_points
from reproalign.common.console import result_console
from reproalign.common.evaluation.plots import Front, fronts
from reproalign.common.files import write_text
from reproalign.common.records import Run

PAGE = "index.html"
TEMPLATE = "page.html.j2"
X_NAMES = {"reward": "mean reward", "win_rate": "win rate"}
PUBLISHED = "published"


def write_report(
    config: FrontierConfig, plan: FrontierPlan, found: Sequence[MeasuredModel], result: Mapping[str, Any], run: Run
) -> None:
    """Draw a picture for each algorithm, write the page, and print the rows.

    Args:
        config: of the frontier.
        plan: of its children.
        found: all rows.
        result: content of ``frontier.json``.
        run: open.
    """
    pictures = {}
    for algorithm, tasks in result["fronts"].items():
        rows = [row.point for row in found if row.entry.algorithm in ("", algorithm)]
        labels = [row.entry.label for row in found if row.entry.algorithm in ("", algorithm)]
        panels, across = _panels(rows, labels, algorithm, list(tasks), config)
        path = run.dir / "plots" / f"{algorithm}.png"
        if panels:
            fronts(panels, path, across=across)
            pictures[algorithm] = base64.b64encode(path.read_bytes()).decode()
    # Everything that a user named is escaped.
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = _number
    template = environment.from_string(files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8"))
    metrics = list(dict.fromkeys(name for row in found for name in row.point.metrics))
    page = template.render(
        command=run.record["command"],
        result=result,
        x_name=X_NAMES[config.x],
        pictures=pictures,
        metrics=metrics,
        rows=[row.point for row in found],
        models={row.entry.model: row.measured.weights for row in found},
        published=config.published,
        commands=[shlex.join(child.invocation.command) for child in plan.children],
    )
    write_text(run.dir / PAGE, page)
    result_console().print(_table(found, X_NAMES[config.x]))


def _panels(
    rows: Sequence[Point], labels: Sequence[str], algorithm: str, tasks: Sequence[str], config: FrontierConfig
) -> tuple[dict[str, dict[str, Front]], dict[str, str]]:
    """Return a panel for each task; beside it, in axes of its own, the paper's series of the same task."""
    panels: dict[str, dict[str, Front]] = {}
    across: dict[str, str] = {}
    measure = next((point.notes["measure"] for point in rows if point.notes.get("measure")), "")
    paper = _published(algorithm, measure) if config.published else []
    for task in tasks:
        panels[task] = _lines(rows, labels, task)
        across[task] = X_NAMES[config.x]
        theirs = _lines(paper, ["" if point.alpha is None else f"{point.alpha:g}" for point in paper], task)
        if theirs:
            title = f"{task}, {PUBLISHED}"
            panels[title] = {f"{name}, {PUBLISHED}": line for name, line in theirs.items()}
            across[title] = f"{X_NAMES[config.x]} (another model and scale)"
    return panels, across


def _published(algorithm: str, measure: str) -> list[Point]:
    """Return the paper's points of an algorithm, measured as ours are; RSF's for one that the paper has not."""
    points = [point for point in published_points() if point.notes.get("measure", "") == measure]
    known = {point.algorithm for point in points}
    chosen = algorithm if algorithm in known else "rsf"
    return points if chosen not in known else [point for point in points if point.algorithm == chosen]


def _lines(rows: Sequence[Point], labels: Sequence[str], task: str) -> dict[str, Front]:
    """Return the series that have a task, with two standard errors to either side."""
    made: dict[str, list[tuple[Point, str, Measure]]] = {}
    for point, label in zip(rows, labels, strict=True):
        if task in point.metrics:
            made.setdefault(point.series, []).append((point, label, point.metrics[task]))
    return {
        series: Front(
            xs=[point.reward.value for point, _, _ in entries],
            ys=[measure.value for _, _, measure in entries],
            labels=[label for _, label, _ in entries],
            x_errors=[2 * (point.reward.stderr or 0.0) for point, _, _ in entries],
            y_errors=[2 * (measure.stderr or 0.0) for _, _, measure in entries],
            joined=len(entries) > 1,
        )
        for series, entries in made.items()
    }


def _number(measure: Measure | float | None, digits: int = 4) -> str:
    """Write a number, with its standard error behind ±; nothing for None."""
    if measure is None:
        return ""
    if isinstance(measure, Measure):
        error = "" if measure.stderr is None else f" ± {measure.stderr:.{digits - 1}g}"
        return f"{measure.value:.{digits + 1}g}{error}"
    return f"{measure:.{digits}g}"


def _table(found: Sequence[MeasuredModel], x_name: str) -> Table:
    tasks = list(dict.fromkeys(name for row in found for name in row.measured.tasks))
    table = Table("series", "point", header_style="bold")
    for name in (x_name, *tasks):
        table.add_column(name, justify="right", overflow="fold")
    for row in found:
        cells = [_number(row.point.reward), *(_number(row.point.metrics.get(name)) for name in tasks)]
        table.add_row(row.entry.series, row.entry.label, *cells)
    return table
