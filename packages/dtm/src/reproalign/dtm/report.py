"""The report of ``dtm run``: the models beside each other, on held-out rows and on benchmarks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from reproalign.common.console import result_console
from reproalign.common.evaluation.plots import categories
from reproalign.common.files import csv_text, write_json, write_text
from reproalign.dtm.study.plots import intervals

ALL = "all"
LOSS = "loss of held-out responses, nats per token"
Scores = dict[str, dict[str, float]]  # model -> column -> number


def write_report(found: Mapping[str, Mapping[str, Mapping[str, Any]]], folder: Path) -> None:
    """Print a table of each kind of evaluation, and write ``results.json``, ``losses.csv``, ``plots/losses.png`` …

    Args:
        found: ``losses`` and ``benchmarks`` -> model -> metrics of its run.
        folder: of the run.
    """
    losses, benchmarks = found.get("losses", {}), found.get("benchmarks", {})
    write_json(folder / "results.json", {"losses": dict(losses), "benchmarks": dict(benchmarks)})
    if losses:
        _write({model: _losses(entry) for model, entry in losses.items()}, "losses", LOSS, 4, folder)
        overall = [(model, entry["loss"], entry["low"], entry["high"]) for model, entry in losses.items()]
        intervals(overall, folder / "plots" / "losses.png", measured=LOSS)
    if benchmarks:
        scores = {model: _benchmarks(entry) for model, entry in benchmarks.items()}
        _write(scores, "benchmarks", "benchmarks", 2, folder)
        points = {model: {name: [value] for name, value in row.items()} for model, row in scores.items()}
        categories({"benchmarks": points}, folder / "plots" / "benchmarks.png")


def _write(scores: Scores, name: str, title: str, digits: int, folder: Path) -> None:
    console = result_console()
    for part in parts_that_fit(_columns(scores), console.width - max(map(len, ["model", *scores])) - 4, digits):
        console.print(_table(scores, part, title, digits))
    write_text(folder / f"{name}.csv", _as_csv(scores))


def _losses(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {ALL: metrics["loss"], **{name: entry["loss"] for name, entry in metrics["sources"].items()}}


def _benchmarks(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: entry["value"] for name, entry in metrics.items() if entry["value"] is not None}


def _columns(scores: Scores) -> list[str]:
    return list(dict.fromkeys(name for row in scores.values() for name in row))


def parts_that_fit(columns: Sequence[str], width: int, digits: int) -> list[list[str]]:
    """Divide columns, in order, among tables that are no wider than ``width`` characters; each has one at least."""
    parts: list[list[str]] = []
    left = 0
    for name in columns:
        needed = max(len(name), digits + 3) + 3
        if not parts or needed > left:
            parts.append([])
            left = width
        parts[-1].append(name)
        left -= needed
    return parts


def _table(scores: Scores, columns: Sequence[str], title: str, digits: int) -> Table:
    table = Table("model", title=title, title_style="bold", header_style="bold")
    for name in columns:
        table.add_column(name, justify="right", overflow="fold")
    for model, row in scores.items():
        table.add_row(model, *(f"{row[name]:.{digits}f}" if name in row else "" for name in columns))
    return table


def _as_csv(scores: Scores) -> str:
    columns = _columns(scores)
    return csv_text(["model", *columns], ([model, *map(row.get, columns)] for model, row in scores.items()))
