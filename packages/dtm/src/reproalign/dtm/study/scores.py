"""Benchmark scores of methods: the paper's, a table in CSV or JSON, or runs of ``dtm evaluate suite=dtm``."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from reproalign.common.errors import UserError, did_you_mean
from reproalign.common.records.handed_on import intact

ANY = "*"  # the setting of rows that state none: they stand for whichever a claim names


@dataclass(frozen=True)
class BenchmarkScore:
    """One number.

    Attributes:
        value: in per cent, or a judge's score.
        stderr: its standard error over items, in the same unit; None: not known.
    """

    value: float
    stderr: float | None = None


BenchmarkRow = dict[str, BenchmarkScore]  # benchmark -> score
Scores = dict[str, dict[str, BenchmarkRow]]  # setting -> method -> row


def published_scores(paper: Mapping[str, Any]) -> Scores:
    """Return the paper's results; accuracies get their binomial standard error 100·√(p (1 - p) / items)."""
    items = {name: entry.get("items") for name, entry in paper["benchmarks"].items()}

    def score(name: str, entry: Any) -> BenchmarkScore:
        value = float(entry["value"] if isinstance(entry, dict) else entry)
        count = items[name]
        return BenchmarkScore(value, math.sqrt(value * (100 - value) / count) if count else None)

    return {
        setting: {
            method: {name: score(name, entry) for name, entry in row.items() if name != "source"}
            for method, row in rows.items()
        }
        for setting, rows in paper["results"].items()
    }


def mean_score(row: BenchmarkRow, benchmarks: Iterable[str]) -> BenchmarkScore | None:
    """Return the unweighted mean over ``benchmarks``, its error √(Σ s²) / count; None if one of them is missing."""
    found = [row.get(name) for name in benchmarks]
    scores = [score for score in found if score is not None]
    if len(scores) < len(found):
        return None
    errors = [score.stderr for score in scores if score.stderr is not None]
    stderr = math.sqrt(sum(error**2 for error in errors)) / len(scores) if len(errors) == len(scores) else None
    return BenchmarkScore(fmean(score.value for score in scores), stderr)


def row_of(scores: Scores, setting: str, method: str) -> BenchmarkRow | None:
    """Return a method's row in a setting, or one that states no setting; None if there is neither."""
    for name in (setting, ANY):
        if method in scores.get(name, {}):
            return scores[name][method]
    return None


def read_table(path: str, paper: Mapping[str, Any]) -> Scores:
    """Read a table of results.

    CSV has a column ``method``, maybe ``setting``, one for each benchmark, by the paper's name or the suite's, and
    maybe ``<benchmark>_stderr``. JSON is a list of such rows, or nested as ``paper.yaml`` has it: method (or setting,
    method) -> benchmark -> number, or {value, stderr}. What is empty is not there.

    Raises:
        UserError: for a file that cannot be read, an unknown column, or what is no number.
    """
    file = Path(path).expanduser()
    try:
        text = intact(file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"results={path}: cannot be read; give a CSV or JSON file") from error
    if file.suffix.lower() == ".csv":
        rows: Any = list(csv.DictReader(text.splitlines()))
    elif file.suffix.lower() == ".json":
        try:
            rows = json.loads(text)
        except ValueError as error:
            raise UserError(f"results={path}: not valid JSON ({error})") from error
    else:
        raise UserError(f"results={path}: give a file that ends in .csv or .json")
    scores: Scores = {}
    for setting, method, values in _entries(rows, paper, path):
        place = f"results={path}: {method}"
        into = scores.setdefault(setting, {})
        if method in into:
            raise UserError(f"{place} is there twice in setting '{setting}'; name each row once")
        into[method] = _row(values, paper, place)
    if not scores:
        raise UserError(f"results={path} has no rows")
    return scores


def read_runs(runs: Mapping[str, str], paper: Mapping[str, Any]) -> Scores:
    """Read runs of ``evaluate suite=dtm``: method -> folder.

    Raises:
        UserError: for a folder without a suite's results, or without any benchmark of the paper.
    """
    scores: Scores = {}
    for method, folder in runs.items():
        scores.setdefault(ANY, {})[method] = suite_row(folder, paper, f"runs.{method}={folder}")
    return scores


def suite_row(folder: str | Path, paper: Mapping[str, Any], place: str) -> BenchmarkRow:
    """Read one run of ``evaluate suite=dtm``; ``place`` is where the user named it."""
    path = Path(folder).expanduser() / "results.json"
    try:
        rows = json.loads(intact(path).read_text(encoding="utf-8"))["rows"]
        found = {row["name"]: BenchmarkScore(float(row["value"]), row["stderr"]) for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{place}: no results of `dtm evaluate suite=dtm` there ({path.name})") from error
    names = _names(paper)
    row = {names[name]: score for name, score in found.items() if name in names}
    if not row:
        raise UserError(f"{place}: its suite has none of the paper's benchmarks; evaluate with suite=dtm")
    return row


def merged(*parts: Scores) -> Scores:
    """Put sets of scores together.

    Raises:
        UserError: if a method of one setting is in two of them.
    """
    whole: Scores = {}
    for part in parts:
        for setting, rows in part.items():
            for method, row in rows.items():
                if method in whole.setdefault(setting, {}):
                    raise UserError(f"results and runs both have '{method}'; give each method once")
                whole[setting][method] = row
    return whole


def _entries(rows: Any, paper: Mapping[str, Any], path: str) -> Iterable[tuple[str, str, Mapping[str, Any]]]:
    """Yield setting, method, and values by column."""
    if isinstance(rows, list):
        for number, row in enumerate(rows, start=1):
            if not isinstance(row, dict) or not row.get("method"):
                raise UserError(f"results={path} row {number}: 'method' is missing; each row names its method")
            values = {name: value for name, value in row.items() if name not in ("setting", "method")}
            yield row.get("setting") or ANY, row["method"], values
        return
    if not isinstance(rows, dict):
        raise UserError(f"results={path}: rows, or method -> benchmark -> number, are needed")
    for name, entry in rows.items():
        nested = isinstance(entry, dict) and any(
            isinstance(value, dict) and "value" not in value for value in entry.values()
        )
        for method, values in entry.items() if nested else [(name, entry)]:
            if not isinstance(values, dict):
                raise UserError(f"results={path}: {method}: benchmark -> number is needed")
            yield name if nested else ANY, method, {key: value for key, value in values.items() if key != "source"}


def _row(values: Mapping[str, Any], paper: Mapping[str, Any], place: str) -> BenchmarkRow:
    names = _names(paper)
    row: dict[str, float] = {}
    errors: dict[str, float] = {}
    for column, value in values.items():
        if column is None or value in (None, ""):
            continue
        name, into = (column.removesuffix("_stderr"), errors) if column.endswith("_stderr") else (column, row)
        if name not in names:
            raise UserError(f"{place}: unknown benchmark '{name}'{did_you_mean(name, names)}")
        inner = value if isinstance(value, dict) else {"value": value}
        try:
            into[names[name]] = float(inner["value"])
            if inner.get("stderr") is not None:
                errors[names[name]] = float(inner["stderr"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{place}: {column} is {value!r}; a number is needed") from error
    for name, number in (*row.items(), *errors.items()):
        if not math.isfinite(number):
            raise UserError(f"{place}: {name} is {number}; a finite number is needed")
    return {name: BenchmarkScore(value, errors.get(name)) for name, value in row.items()}


def _names(paper: Mapping[str, Any]) -> dict[str, str]:
    """The paper's names and the suite's -> the paper's."""
    known = {name: name for name in paper["benchmarks"]}
    return known | {entry["suite"]: name for name, entry in paper["benchmarks"].items() if "suite" in entry}
