"""A point of a reward-tax front, and the CSV that fronts are kept in.

One row is one model that was evaluated: which sweep it belongs to (``series``), how it was aligned (``algorithm``),
what was done to it (``method``, ``part``, ``alpha``, ``parameter`` and ``value``), its reward, and a column for each
task's metric, with ``<metric>_stderr`` where the standard error is known. Rows of a series stand in the order in which
they are joined. Columns that say more in words (:data:`NOTES`) are optional. The published series have the same form.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from reproalign.common.errors import UserError, choose
from reproalign.common.files import csv_text, write_text
from reproalign.common.records.handed_on import intact

METHODS = {
    "pre": "the model before alignment, θ_0",
    "post": "the model after alignment, θ",
    "ma": "all parts averaged at one ratio",
    "part": "one part averaged, the others those of θ",
    "pattern": "a hand-made ratio for each part",
    "hma": "learned ratios under a fixed mean",
    "adamerging": "ratios learned on labelled task data",
    "graft": "the entries that alignment changed most, grafted onto θ_0",
    "l1": "trained with an L1 penalty towards θ_0",
    "l2": "trained with an L2 penalty towards θ_0",
    "kd": "trained with distillation from θ_0",
    "swa": "stochastic weight averaging along the training",
    "lora": "trained as low-rank adapters",
    "early": "an earlier checkpoint of the training",
    "replay": "trained on pre-training text too",
    "kl": "trained with another coefficient of the KL penalty",
    "baseline": "trained on the same data without any penalty: the control",
}
PARTS = ("input", "middle", "output")
KEYS = ("series", "algorithm", "method", "part", "alpha", "parameter", "value", "reward", "reward_stderr")
NOTES = {
    "rule": "which tensors were averaged: released_ma, linear_head_pre or linear_head_post; empty for other methods",
    "measure": "what the column reward holds: empty for a reward model's mean, pairrm or alpacaeval for a win rate",
    "rewards": "a JSON-lines file of id and reward by prompt, for paired intervals; relative paths start at the table",
    "figure": "figure or table of the paper",
    "source": "P printed, D digitised, C computed",
    "note": "what else is to be known",
}
_REQUIRED = ("series", "method", "reward")
_STDERR = "_stderr"


@dataclass(frozen=True)
class Measure:
    """A number with its standard error.

    Attributes:
        value: finite.
        stderr: in the same unit, at least 0; None: not known.
    """

    value: float
    stderr: float | None = None


@dataclass(frozen=True)
class Point:
    """One evaluated model.

    Attributes:
        series: name of the sweep that it belongs to; points of a series are joined in their order.
        method: what was done to the model, one of :data:`METHODS`.
        reward: mean reward on held-out prompts, or a win rate.
        algorithm: of the alignment: rsf, dpo, ppo or another's name; empty where it does not matter.
        part: which part a sweep of one part averages: input, middle or output, or a group's number from 1 on.
        alpha: mean ratio, which multiplies the weights before alignment; in [0, 1] but for extrapolation; None for
            methods without one.
        parameter: name of what else the sweep varies: ``K`` (groups) for learned ratios, ``ratios`` for patterns,
            ``lambda`` for penalties and replay, ``kl``, ``iteration``, …
        value: of that parameter, as text, such as ``3``, ``0.3|0.2|0.2`` or ``0.04``.
        metrics: task metric -> number: ``reading``, ``common_sense``, ``bleu``, ``drop``, ``perplexity``, …
        notes: of :data:`NOTES`, those that are not empty.
    """

    series: str
    method: str
    reward: Measure
    algorithm: str = ""
    part: str = ""
    alpha: float | None = None
    parameter: str = ""
    value: str = ""
    metrics: Mapping[str, Measure] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)


def write_points(points: Sequence[Point], path: Path) -> None:
    """Write points as CSV, whole or not at all; columns that no point fills are left out but for the keys.

    Raises:
        ValueError: for a metric that is named like a key or a note.
    """
    metrics = list(dict.fromkeys(name for point in points for name in point.metrics))
    taken = [name for name in metrics if name in (*KEYS, *NOTES) or name.endswith(_STDERR)]
    if taken:
        raise ValueError(f"a metric cannot be called {taken[0]}")
    notes = [name for name in NOTES if any(point.notes.get(name) for point in points)]
    columns = [column for name in metrics for column in (name, name + _STDERR)]
    write_text(path, csv_text([*KEYS, *columns, *notes], (_cells(point, metrics, notes) for point in points)))


def read_points(path: str | Path, *, key: str = "results") -> list[Point]:
    """Read points from a CSV file.

    Args:
        path: of the file, or of a folder that holds ``points.csv``.
        key: what the user gave it as, for messages.

    Raises:
        UserError: for a file that cannot be read, a column that is missing or there twice, an unknown method or part,
            what is no finite number, a negative standard error, or one without its metric.
    """
    file = Path(path).expanduser()
    file = file / "points.csv" if file.is_dir() else file
    try:
        text = intact(file).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{key}={path}: cannot be read; give a points.csv, or the folder of a run") from error
    return parse_points(text, f"{key}={path}", file.parent)


def parse_points(text: str, place: str, folder: Path | None = None) -> list[Point]:
    """Read points from the text of a CSV file.

    Args:
        text: of the file.
        place: what messages call it.
        folder: which a relative path in the column ``rewards`` starts from.

    Raises:
        UserError: as :func:`read_points`.
    """
    lines = csv.reader(io.StringIO(text))
    header = next(lines, [])
    _check_header(header, place)
    points = []
    for row in lines:
        if not any(row):
            continue
        here = f"{place} line {lines.line_num}"
        if len(row) != len(header):
            raise UserError(f"{here} has {len(row)} fields where the header has {len(header)}")
        points.append(_point(dict(zip(header, (cell.strip() for cell in row), strict=True)), here, folder))
    if not points:
        raise UserError(f"{place} has no rows; a front needs at least one point")
    return points


def _cells(point: Point, metrics: Iterable[str], notes: Iterable[str]) -> list[object]:
    names = (point.series, point.algorithm, point.method, point.part, point.alpha, point.parameter, point.value)
    measured = [point.reward, *(point.metrics.get(name) for name in metrics)]
    numbers = [number for found in measured for number in ((found.value, found.stderr) if found else (None, None))]
    return [*names, *numbers, *(point.notes.get(name) for name in notes)]


def _check_header(header: Sequence[str], place: str) -> None:
    missing = [name for name in _REQUIRED if name not in header]
    if missing:
        raise UserError(f"{place}: column '{missing[0]}' is missing; a point has {', '.join(KEYS)} and its metrics")
    twice = [name for name in header if header.count(name) > 1]
    if twice:
        raise UserError(f"{place}: column '{twice[0]}' is there twice; name each column once")
    if "" in header:
        raise UserError(f"{place}: column {header.index('') + 1} has no name; name it or leave it out")
    for name in header:
        if name.endswith(_STDERR) and name.removesuffix(_STDERR) not in header:
            raise UserError(f"{place}: column '{name}' is there without '{name.removesuffix(_STDERR)}'")


def _point(row: Mapping[str, str], here: str, folder: Path | None) -> Point:
    if not row["series"]:
        raise UserError(f"{here}: series is empty; name the sweep that the point belongs to")
    try:
        method = choose("method", row["method"], METHODS)
    except UserError as error:
        raise UserError(f"{here}: {error}") from error
    part = row.get("part", "")
    if part and part not in PARTS and not (part.isdecimal() and int(part) >= 1):
        raise UserError(f"{here}: part is '{part}'; it is input, middle, output or a group's number from 1 on")
    reward = _measure(row, "reward", here)
    if reward is None:
        raise UserError(f"{here}: reward is empty; a point of a front has one")
    names = [name for name in row if name not in (*KEYS, *NOTES) and not name.endswith(_STDERR)]
    metrics = {name: found for name in names if (found := _measure(row, name, here))}
    notes = {name: row[name] for name in NOTES if row.get(name)}
    if folder is not None and "rewards" in notes:
        notes["rewards"] = str(folder / notes["rewards"])
    return Point(
        series=row["series"],
        method=method,
        reward=reward,
        algorithm=row.get("algorithm", ""),
        part=part,
        alpha=_number(row.get("alpha", ""), "alpha", here),
        parameter=row.get("parameter", ""),
        value=row.get("value", ""),
        metrics=metrics,
        notes=notes,
    )


def _measure(row: Mapping[str, str], name: str, here: str) -> Measure | None:
    value = _number(row[name], name, here)
    stderr = _number(row.get(name + _STDERR, ""), name + _STDERR, here)
    if value is None:
        if stderr is not None:
            raise UserError(f"{here}: {name}{_STDERR} is there without {name}")
        return None
    if stderr is not None and stderr < 0:
        raise UserError(f"{here}: {name}{_STDERR} is {stderr}; a standard error is at least 0")
    return Measure(value, stderr)


def _number(text: str, name: str, here: str) -> float | None:
    if not text:
        return None
    try:
        number = float(text)
    except ValueError as error:
        raise UserError(f"{here}: {name} is '{text}'; a number is needed") from error
    if not math.isfinite(number):
        raise UserError(f"{here}: {name} is {text}; a finite number is needed")
    return number
