"""From public data to ``rows.jsonl``: rows are streamed, misfits listed, prompts held out."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reproalign.common.config.data import RowsConfig
from reproalign.common.console import track
from reproalign.common.data.holdout import held_out, prompt_key
from reproalign.common.data.records import RowError
from reproalign.common.data.splits import open_rows
from reproalign.common.errors import UserError
from reproalign.common.files import atomic_path
from reproalign.dtm.disperse.first_turn import FirstTurnRules, InstructionRow, instruction_row
from reproalign.dtm.rows import HELD_OUT, ROWS

REJECTS = "rejects.jsonl"


@dataclass
class Extracted:
    """What became of the original rows.

    Attributes:
        rows: training rows, those of ``rows.jsonl``.
        held_out: rows of ``held_out.jsonl``.
        rejected: rows that did not fit, listed in ``rejects.jsonl``.
        placeholders: empty objects among the rows (released).
        sources: names of the rows' sources.
        source_of: training row -> index in ``sources``.
        sets: label -> where its rows came from, and how many there were.
        set_sizes: label -> training rows of it.
    """

    rows: int = 0
    held_out: int = 0
    rejected: int = 0
    placeholders: int = 0
    sources: list[str] = field(default_factory=list)
    source_of: NDArray[np.uint32] = field(default_factory=lambda: np.zeros(0, np.uint32))
    sets: dict[str, dict[str, Any]] = field(default_factory=dict)
    set_sizes: dict[str, int] = field(default_factory=dict)


def extract(
    sets: Mapping[str, RowsConfig],
    folder: Path,
    *,
    rules: FirstTurnRules,
    on_error: str,
    eval_fraction: float = 0.0,
    seed: int = 42,
) -> Extracted:
    """Write the rows of all data sets, one after another, into ``folder``.

    Args:
        sets: label -> where its rows are, in order.
        folder: gets ``rows.jsonl``, ``rejects.jsonl`` and, with ``eval_fraction``, ``held_out.jsonl``.
        rules: how rows are made.
        on_error: ``raise`` or ``skip`` a row that does not fit.
        eval_fraction: share of the distinct prompts (instruction and input) whose rows are held out, rounded up.
        seed: decides which prompts.

    Raises:
        UserError: for the first misfit under ``raise``, for data that cannot be read, and if no row is left.
    """
    result = Extracted()
    codes, prompts, fits, ends = array("L"), array("Q"), array("b"), [0]
    known: dict[str, int] = {}
    with (
        atomic_path(folder / ROWS) as rows_path,
        atomic_path(folder / REJECTS) as rejects_path,
        rows_path.open("w", encoding="utf-8") as rows,
        rejects_path.open("w", encoding="utf-8") as rejects,
    ):
        for label, entry in sets.items():
            for place, row, source, reason in _read(label, entry, rules, result):
                if reason:
                    if on_error == "raise":
                        raise UserError(f"{place}: {reason}; fix the row, or set data.on_error=skip to skip such rows")
                    rejects.write(_line({"place": place, "reason": reason}))
                    result.rejected += 1
                    continue
                rows.write(_line(row if rules.unchecked else {**row, "source": source}))
                codes.append(known.setdefault(source, len(known)))
                prompts.append(prompt_key(seed, row.get("instruction"), row.get("input")))
                fits.append(bool(row))
                result.placeholders += not row
            ends.append(len(codes))
        if not codes:
            raise UserError(
                f"data.sets ({', '.join(sets)}): none of {result.rejected} rows is usable; data.on_error=raise names "
                "the first"
            )
    kept = np.ones(len(codes), np.bool_)
    result.sources, result.source_of = list(known), np.asarray(codes, np.uint32)
    usable = np.asarray(fits, np.bool_)
    if eval_fraction and usable.any():  # an empty object has no prompt, and nothing to measure
        kept[usable] = ~held_out(np.asarray(prompts, np.uint64)[usable], eval_fraction)
        if not kept[usable].any():
            raise UserError(f"data.eval_fraction={eval_fraction:g} of {len(kept)} rows leaves none to train on")
        _split(folder, kept, [result.sources[code] for code in result.source_of] if rules.unchecked else None)
    result.rows, result.held_out = int(kept.sum()), int((~kept).sum())
    result.source_of = result.source_of[kept]
    result.set_sizes = {
        label: int(kept[start:end].sum()) for label, (start, end) in zip(sets, pairwise(ends), strict=True)
    }
    return result


def read_lines(path: Path) -> Iterator[str]:
    r"""Yield the lines of a file that :func:`extract` wrote; only ``\n`` ends one."""
    with path.open(encoding="utf-8", newline="\n") as stream:
        yield from stream


def _read(
    label: str, entry: RowsConfig, rules: FirstTurnRules, result: Extracted
) -> Iterator[tuple[str, InstructionRow, str, str | None]]:
    """Yield place, row, source and reason of rejection of a data set's original rows."""
    rows, source, facts = open_rows(label, entry)
    read = 0
    for original in track(islice(rows, entry.first), f"reading {label}"):
        read += 1
        try:
            if original.problem:
                raise RowError(original.problem)
            row = instruction_row(source.read(original.values), source, rules)
            if not rules.unchecked:
                _check(row)
        except RowError as error:
            yield original.place, {}, "", str(error)
            continue
        yield original.place, row, _source_of(original.values, label), None
    result.sets[label] = {**facts, "rows_read": read}


def _check(row: InstructionRow) -> None:
    for name in ("instruction", "input", "output"):
        if not isinstance(row[name], str):
            raise RowError(f"the {name} is not text")
        if name != "input" and not row[name].strip():
            raise RowError(f"the {name} is empty")


def _source_of(values: dict[str, Any], label: str) -> str:
    named = next((values[key] for key in ("source", "dataset") if isinstance(values.get(key), str)), "")
    return named or label


def _split(folder: Path, kept: NDArray[np.bool_], sources: list[str] | None) -> None:
    """Move the held-out lines to a file of their own, with their sources if the lines themselves name none."""
    with (
        atomic_path(folder / ROWS) as rows_path,
        atomic_path(folder / HELD_OUT) as held_path,
        rows_path.open("w", encoding="utf-8") as rows,
        held_path.open("w", encoding="utf-8") as held,
    ):
        for number, line in enumerate(read_lines(folder / ROWS)):
            if kept[number]:
                rows.write(line)
            else:
                held.write(line if sources is None else _line({**json.loads(line), "source": sources[number]}))


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
