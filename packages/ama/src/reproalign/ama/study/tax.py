"""``ama study tax``: what alignment gains and loses (Fig. 1), and the rows of Table 1, the paper's and ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Column, Table

from reproalign.ama.study.config import TaxConfig
from reproalign.ama.study.published import published_points
from reproalign.ama.study.reading import add_fingerprints, read_results
from reproalign.ama.study.results import REWARD, Results, make_results
from reproalign.common.console import result_console, say
from reproalign.common.errors import UserError
from reproalign.common.files import csv_text, write_json, write_text
from reproalign.common.invocation import Invocation
from reproalign.common.records import Run
from reproalign.common.records.paper import load_paper

PAPER, HERE = "paper", "here"
ALPHA = 0.2  # of Table 1
_TABLE_METHODS = {"post": "original", "ma": "MA", "hma": "HMA"}


@dataclass(frozen=True)
class Change:
    """What alignment changed in one metric.

    Attributes:
        numbers: whose they are: paper or here.
        algorithm: of the alignment.
        metric: reward or a task's.
        pre: of θ_0.
        post: of θ.
        percent: 100 (post - pre) / |pre|; None where pre is 0.
        printed: per cent that Figure 1 prints; None where it prints none, or no algorithm's series gives it.
    """

    numbers: str
    algorithm: str
    metric: str
    pre: float
    post: float
    percent: float | None
    printed: float | None


def tax(config: TaxConfig, invocation: Invocation) -> None:
    """Print the change from θ_0 to θ in per cent, and original, MA and HMA in the layout of Table 1.

    Figure 1 prints percentages without saying of which algorithm; they stand beside those that the paper's own series
    give for each. Written are ``tax.csv``, ``table1.csv``, ``tax.md`` and ``tax.json``.

    Raises:
        UserError: for results that cannot be read, or hold neither θ with θ_0 nor a row of the table.
    """
    if config.alpha is not None and not config.results:
        raise UserError("alpha is about results; give results=[points.csv,…] too")
    paper = load_paper("reproalign.ama")
    points = read_results(config.results, {}, config.rule)
    changes = list(changes_of(make_results(published_points(), {}), PAPER, paper["figure_1"]))
    rows = list(published_rows())
    if points:
        ours = make_results(points, {})
        own_changes, own_rows = (
            list(changes_of(ours, HERE, {})),
            list(result_rows(ours, ALPHA if config.alpha is None else config.alpha)),
        )
        if not own_changes and not own_rows:
            raise UserError(
                "the results have no algorithm with both θ_0 and θ: give rows of method pre and post (or alpha 1 and 0)"
            )
        if config.alpha is not None and all(row["alpha"] is None for row in own_rows):
            raise UserError(f"alpha={config.alpha:g}: the results have no average (MA, HMA) at this ratio")
        changes, rows = changes + own_changes, rows + own_rows
    with Run.open(invocation) as run:
        add_fingerprints(run, config.results)
        _report(changes, rows, run)


def changes_of(results: Results, numbers: str, figure: Mapping[str, Any]) -> Iterator[Change]:
    """Yield what alignment changed, for each algorithm that has θ_0 and θ, in each metric that both have.

    Args:
        results: the points.
        numbers: whose they are: paper or here.
        figure: of ``paper.yaml``: ``percent`` that are printed, and ``algorithms`` that they may be of; empty: none.
    """
    for algorithm in dict.fromkeys(point.algorithm for point in results.points if point.algorithm):
        post, pre = results.post(algorithm), results.pre(algorithm)
        if post is None or pre is None:
            continue
        printed = figure.get("percent", {}) if algorithm in figure.get("algorithms", ()) else {}
        for metric in results.metrics:
            if len(results.known((post, pre), metric)) == 2:
                before, after = (float(results.values[index, results.column(metric)]) for index in (pre, post))
                percent = 100 * (after - before) / abs(before) if before else None
                yield Change(numbers, algorithm, metric, before, after, percent, printed.get(metric))


def published_rows() -> Iterator[dict[str, Any]]:
    """Yield the rows of Table 1, win rates in per cent as printed."""
    for point in published_points():
        if point.notes["figure"] == "Table 1":
            tasks = {name: measure.value for name, measure in point.metrics.items()}
            yield {
                "numbers": PAPER,
                "model": point.algorithm,
                "row": _TABLE_METHODS[point.method],
                "alpha": point.alpha if point.method != "post" else None,
                REWARD: round(100 * point.reward.value, 2),
                **tasks,
            }


def result_rows(results: Results, alpha: float) -> Iterator[dict[str, Any]]:
    """Yield θ, MA and HMA at one ratio, for each algorithm that has θ."""
    for algorithm in dict.fromkeys(point.algorithm for point in results.points if point.algorithm):
        found = {"post": results.post(algorithm)}
        found |= {method: results.at(results.sweep(algorithm, method), alpha) for method in ("ma", "hma")}
        for method, index in found.items() if found["post"] is not None else ():
            if index is not None:
                known = {name: float(value) for name, value in zip(results.metrics, results.values[index], strict=True)}
                yield {
                    "numbers": HERE,
                    "model": algorithm,
                    "row": _TABLE_METHODS[method],
                    "alpha": None if method == "post" else alpha,
                    **{name: value for name, value in known.items() if value == value},
                }


def _report(changes: Sequence[Change], rows: Sequence[Mapping[str, Any]], run: Run) -> None:
    console = result_console()
    header = ["numbers", "algorithm", "metric", "theta_0", "theta", "change", "percent", "printed in figure 1"]
    cells = [_cells(change) for change in changes]
    console.print(_table("θ against θ_0", header, cells))
    names = list(dict.fromkeys(name for row in rows for name in row))
    lines = [[_number(row.get(name)) for name in names] for row in rows]
    console.print(_table("original, MA and HMA (Table 1; its reward is GPT-4's win rate in per cent)", names, lines))
    write_text(run.dir / "tax.csv", csv_text(header, cells))
    write_text(run.dir / "table1.csv", csv_text(names, lines))
    write_text(run.dir / "tax.md", _markdown(header, cells) + "\n" + _markdown(names, lines))
    write_json(
        run.dir / "tax.json", {"changes": [vars(change) for change in changes], "table1": [dict(row) for row in rows]}
    )
    run.set_metrics(
        {
            f"{change.numbers}/{change.algorithm}/{change.metric}": change.percent
            for change in changes
            if change.percent is not None
        }
    )
    say(f"record, tax.csv, table1.csv, tax.md and tax.json: {run.dir}")


def _cells(change: Change) -> list[str]:
    percent = "" if change.percent is None else f"{change.percent:+.1f}"
    printed = "" if change.printed is None else f"{change.printed:+g}"
    ends = [f"{value:.3f}" if change.metric == REWARD else f"{value:.2f}" for value in (change.pre, change.post)]
    difference = change.post - change.pre
    shown = f"{difference:+.3f}" if change.metric == REWARD else f"{difference:+.2f}"
    return [change.numbers, change.algorithm, change.metric, *ends, shown, percent, printed]


def _number(value: object) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    columns = (Column(name, overflow="fold") for name in header)
    table = Table(*columns, title=title, header_style="bold", title_style="bold")
    for row in rows:
        table.add_row(*row)
    return table


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"
