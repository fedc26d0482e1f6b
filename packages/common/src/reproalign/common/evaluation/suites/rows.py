"""A suite's numbers as rows: benchmarks, subtasks and averages."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from reproalign.common.errors import UserError
from reproalign.common.evaluation.suites.config import BenchmarkAverageConfig, SuiteConfig
from reproalign.common.evaluation.suites.prepare import Benchmark, PreparedSuite
from reproalign.common.evaluation.suites.run import TaskResult


@dataclass(frozen=True)
class SuiteRow:
    """One number.

    Attributes:
        name: benchmark, ``benchmark/subtask`` or average.
        kind: benchmark | subtask | average.
        task: of lm-eval.
        version: of the task.
        shots: worked examples.
        metric: as lm-eval names it.
        filter: of lm-eval.
        value: in the benchmark's scale.
        stderr: standard error over questions, None where it is not known.
        questions: asked.
        of: questions that the data have.
        truncated: questions whose prompt lost its beginning, being longer than the model takes.
        subtasks: how many of a group's subtasks were evaluated, e.g. ``8 of 57``; None for a task.
        note: what the number may not be compared with.
    """

    name: str
    kind: str
    task: str | None
    version: str | None
    shots: int | None
    metric: str | None
    filter: str | None
    value: float
    stderr: float | None
    questions: int
    of: int
    truncated: int
    subtasks: str | None
    note: str | None


def rows_of(suite: SuiteConfig, prepared: PreparedSuite, results: Mapping[str, TaskResult]) -> list[SuiteRow]:
    """Return all rows, averages last."""
    rows = [row for benchmark in prepared.benchmarks for row in _benchmark(benchmark, results)]
    for name in suite.averages:
        average = suite.average(name)
        members = _members(name, average, rows)
        if members:
            rows.append(_average(name, average, members))
    return rows


def _benchmark(benchmark: Benchmark, results: Mapping[str, TaskResult]) -> list[SuiteRow]:
    first = results[benchmark.evaluations[0]]
    keys = [key for key in first.metrics if "_stderr," not in key and first.metrics[key] is not None]
    rows = []
    for key in keys:
        metric, _, chosen = key.partition(",")
        if benchmark.config.metric in (None, metric) and benchmark.config.filter in (None, chosen):
            rows += _one(benchmark, metric, chosen, results)
    if not rows:
        raise UserError(
            f"{benchmark.name}: lm-eval gave no number for {benchmark.config.metric or 'any metric'}; choose another "
            "metric, or leave it out of suite.tasks"
        )
    return rows


def _one(benchmark: Benchmark, metric: str, chosen: str, results: Mapping[str, TaskResult]) -> list[SuiteRow]:
    parts = [_row(name, benchmark, metric, chosen, results[name]) for name in benchmark.evaluations]
    if benchmark.known == 1:
        return [SuiteRow(**{**asdict(parts[0]), "name": benchmark.name, "kind": "benchmark"})]
    if benchmark.weighted is None:
        return parts
    value, stderr = _mean(parts, questions=benchmark.weighted)
    whole = SuiteRow(
        benchmark.name,
        "benchmark",
        benchmark.config.task or benchmark.name,
        parts[0].version,
        parts[0].shots,
        metric,
        chosen,
        value,
        stderr,
        sum(part.questions for part in parts),
        sum(part.of for part in parts),
        sum(part.truncated for part in parts),
        parts[0].subtasks,
        benchmark.config.note,
    )
    return [whole, *parts]


def _row(name: str, benchmark: Benchmark, metric: str, chosen: str, result: TaskResult) -> SuiteRow:
    scale, facts = benchmark.config.scale, result.experiment
    value, stderr = result.metrics.get(f"{metric},{chosen}"), result.metrics.get(f"{metric}_stderr,{chosen}")
    if value is None:
        raise UserError(f"{name}: lm-eval gave no {metric} with filter {chosen}; choose another metric or filter")
    return SuiteRow(
        name,
        "subtask",
        facts["task"],
        str(facts["version"]),
        facts["shots"],
        metric,
        chosen,
        scale * value,
        None if stderr is None else abs(scale) * stderr,
        *result.questions,
        result.truncated,
        f"{len(benchmark.evaluations)} of {benchmark.known}" if benchmark.known > 1 else None,
        benchmark.config.note,
    )


def _members(name: str, average: BenchmarkAverageConfig, rows: Sequence[SuiteRow]) -> list[SuiteRow]:
    """Return the rows of an average; none if one of them was not run."""
    members: list[SuiteRow] = []
    for member in average.members:
        prefix = member.removesuffix("*")
        found = [row for row in rows if row.name == member or (prefix != member and row.name.startswith(prefix))]
        if not found:
            return []
        if len({(row.metric, row.filter) for row in found}) > 1:
            raise UserError(
                f"suite.averages.{name}: '{member}' has several metrics; set suite.benchmarks.{member}.metric"
            )
        members += found
    return members


def _average(name: str, average: BenchmarkAverageConfig, members: Sequence[SuiteRow]) -> SuiteRow:
    value, stderr = _mean(members, questions=average.weight == "questions")
    questions, of, cut = (sum(getattr(row, name) for row in members) for name in ("questions", "of", "truncated"))
    subtasks = _coverage(members)
    return SuiteRow(
        name, "average", None, None, None, None, None, value, stderr, questions, of, cut, subtasks, average.note
    )


def _coverage(members: Sequence[SuiteRow]) -> str | None:
    """Return how many subtasks were evaluated of the groups that an average is made from; None without a group."""
    groups = [row.subtasks for row in members if row.subtasks and row.kind != "subtask"]
    groups += {row.subtasks for row in members if row.subtasks and row.kind == "subtask"}  # those of one group
    counts = [tuple(map(int, text.split(" of "))) for text in groups]
    return f"{sum(some for some, _ in counts)} of {sum(known for _, known in counts)}" if counts else None


def _mean(rows: Sequence[SuiteRow], *, questions: bool) -> tuple[float, float | None]:
    """Return Σ w x / Σ w with weights 1 or the numbers of questions, and √(Σ w² s²) / Σ w, members being independent.

    By questions, and where all have a standard error, that error is lm-eval's pooled one of the questions together.
    """
    weights = [row.questions if questions else 1 for row in rows]
    value = sum(weight * row.value for weight, row in zip(weights, rows, strict=True)) / sum(weights)
    errors = [row.stderr for row in rows if row.stderr is not None]
    if len(errors) < len(rows):
        return value, None
    if questions and sum(weights) > len(rows):
        from lm_eval.api.metrics import pooled_sample_stderr

        return value, float(pooled_sample_stderr(errors, weights))
    squares = sum((weight * error) ** 2 for weight, error in zip(weights, errors, strict=True))
    return value, math.sqrt(squares) / sum(weights)
