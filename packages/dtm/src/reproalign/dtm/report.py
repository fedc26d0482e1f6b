"""The report of ``dtm run``: the models beside each other, on held-out rows and on benchmarks."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from reproalign.common.evaluation.plots import categories
from reproalign.common.files import write_json, write_text

ALL = "all"
Scores = dict[str, dict[str, float]]  # model -> column -> number


def write_report(found: Mapping[str, Mapping[str, Mapping[str, Any]]], folder: Path) -> None:
    """Print a table of each kind of evaluation, and write ``results.json``, ``losses.csv``, ``plots/losses.png`` …

    Args:
        found: ``losses`` and ``benchmarks`` -> model -> metrics of its run.
        folder: of the run.
    """
    made = {
        "losses": ({model: _losses(metrics) for model, metrics in found.get("losses", {}).items()}, 4),
        "benchmarks": ({model: _benchmarks(metrics) for model, metrics in found.get("benchmarks", {}).items()}, 2),
    }
    write_json(folder / "results.json", {kind: dict(found.get(kind, {})) for kind in made})
    titles = {"losses": "loss of held-out responses, nats per token", "benchmarks": "benchmarks"}
    for kind, (scores, digits) in made.items():
        if scores:
            Console().print(_table(scores, titles[kind], digits))
            write_text(folder / f"{kind}.csv", _as_csv(scores))
            points = {model: {name: [value] for name, value in row.items()} for model, row in scores.items()}
            categories({titles[kind]: points}, folder / "plots" / f"{kind}.png")


def _losses(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {ALL: metrics["loss"], **{name: entry["loss"] for name, entry in metrics["sources"].items()}}


def _benchmarks(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: entry["value"] for name, entry in metrics.items() if entry["value"] is not None}


def _columns(scores: Scores) -> list[str]:
    return list(dict.fromkeys(name for row in scores.values() for name in row))


def _table(scores: Scores, title: str, digits: int) -> Table:
    table = Table("model", title=title, title_style="bold", header_style="bold")
    for name in _columns(scores):
        table.add_column(name, justify="right", overflow="fold")
    for model, row in scores.items():
        table.add_row(model, *(f"{row[name]:.{digits}f}" if name in row else "" for name in _columns(scores)))
    return table


def _as_csv(scores: Scores) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, ["model", *_columns(scores)], lineterminator="\n")
    writer.writeheader()
    writer.writerows({"model": model, **row} for model, row in scores.items())
    return stream.getvalue()
