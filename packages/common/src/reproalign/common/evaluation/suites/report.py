"""A suite's numbers as rows: benchmarks, subtasks and averages; as a table, JSON and CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich.table import Column, Table

from reproalign.common.evaluation.suites.config import SuiteConfig
from reproalign.common.evaluation.suites.rows import SuiteRow
from reproalign.common.evaluation.suites.run import TaskResult
from reproalign.common.files import csv_text


def table(suite: SuiteConfig, model: str, rows: Sequence[SuiteRow]) -> Table:
    """Return the table for the terminal: benchmarks and averages, without the subtasks."""
    drawn = Table(
        "benchmark",
        "shots",
        Column("metric", overflow="fold"),
        title=f"{suite.name}: {model}",
        header_style="bold",
        title_style="bold",
    )
    drawn.add_column("value", justify="right")
    drawn.add_column("± stderr", justify="right")
    drawn.add_column("questions", justify="right")
    subtasks = any(row.kind == "benchmark" for row in rows)
    shown = [row for row in rows if row.kind != "subtask" or not subtasks]
    for number, row in enumerate(shown):
        if row.kind == "average" and (number == 0 or shown[number - 1].kind != "average"):
            drawn.add_section()
        metric = ", ".join(text for text in (row.metric, row.filter) if text and text != "none")
        drawn.add_row(
            row.name,
            "" if row.shots is None else str(row.shots),
            "mean" if row.kind == "average" else metric,
            f"{row.value:.2f}",
            "" if row.stderr is None else f"{row.stderr:.2f}",
            _counted(row),
        )
    return drawn


def _counted(row: SuiteRow) -> str:
    questions = str(row.questions) if row.questions == row.of else f"{row.questions} of {row.of}"
    evaluated, _, known = (row.subtasks or "").partition(" of ")
    return questions if evaluated == known else f"{questions} ({row.subtasks} subtasks)"


def notes(rows: Sequence[SuiteRow]) -> list[str]:
    """Return what the rows may not be compared with, and where prompts were cut, a line for each."""
    shown = [row for row in rows if row.kind != "subtask"]
    lines = [f"{row.name}: {row.note}" for row in shown if row.note]
    cut = {row.name: row for row in shown if row.truncated and row.kind == "benchmark"}
    return lines + [
        f"{name}: {row.truncated} of {row.questions} prompts lost their beginning, being longer than the model takes"
        for name, row in cut.items()
    ]


def as_csv(rows: Sequence[SuiteRow]) -> str:
    """Return the rows as CSV with a header."""
    return csv_text(list(SuiteRow.__dataclass_fields__), [list(asdict(entry).values()) for entry in rows])


def as_json(
    suite: SuiteConfig, model: Mapping[str, Any], rows: Sequence[SuiteRow], results: Mapping[str, TaskResult]
) -> Any:
    """Return all there is to know of a suite's run as plain values."""
    evaluations = {
        name: {
            "metrics": result.metrics,
            "questions": {"effective": result.questions[0], "original": result.questions[1]},
            "truncated": result.truncated,
            "task_hash": result.task_hash,
            "seconds": result.seconds,
            "processes": result.processes,
            "experiment": result.experiment,
        }
        for name, result in results.items()
    }
    return {
        "suite": suite.name,
        "model": dict(model),
        "rows": [asdict(row) for row in rows],
        "evaluations": evaluations,
    }
