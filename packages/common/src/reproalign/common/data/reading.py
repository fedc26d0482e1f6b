"""Rows from local files or the Hugging Face Hub, each with the place it came from."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from reproalign.common.errors import UserError, first_line
from reproalign.common.files import read_text
from reproalign.common.records.handed_on import intact

SUFFIXES = (".json", ".jsonl", ".jsonl.gz", ".parquet", ".csv")


@dataclass(frozen=True)
class Row:
    """One original row; ``problem`` says why it could not be read."""

    place: str
    values: dict[str, Any]
    problem: str | None = None


def local_path(path: str, split: str | None = None, *, key: str = "path") -> Path:
    """Find the file that ``path`` stands for: a file, a folder with ``<split>*`` in it, or ``demo:NAME``.

    ``key`` is what the user typed it for.

    Raises:
        UserError: if there is no such file, or no single one.
    """
    if path.startswith("demo:"):
        found = Path(str(files("reproalign.common.demo").joinpath(f"{path.removeprefix('demo:')}.jsonl")))
        if not found.is_file():
            raise UserError(f"{key}={path}: no such shipped data set; there are demo:pairs-train and demo:pairs-eval")
        return found
    found = Path(path).expanduser()
    if found.is_dir() and not (found / "dataset_info.json").is_file():
        fitting = sorted(
            file for file in found.iterdir() if file.name.endswith(SUFFIXES) and file.name.startswith(split or "")
        )
        if len(fitting) != 1:
            names = ", ".join(file.name for file in fitting) or "none"
            raise UserError(
                f"{key}={path}: one file named {split or ''}* is needed, found {names}; name the file itself"
            )
        return fitting[0]
    if not found.exists():
        raise UserError(f"{key}={path}: no such file; check the path")
    return found


def read_local(path: Path) -> Iterator[Row]:
    """Yield the rows of a file of one of :data:`SUFFIXES`, or of a ``save_to_disk`` folder.

    A line that is not valid JSON is yielded with its problem; the caller decides what becomes of it.

    Raises:
        UserError: if the file as a whole cannot be read, is empty, of another kind, or not what a run wrote.
    """
    intact(path)
    if path.is_dir():
        rows = _saved(path)
    elif path.name.endswith((".jsonl", ".jsonl.gz")):
        rows = _json_lines(path)
    elif path.name.endswith(".json"):
        rows = _json_array(path)
    elif path.name.endswith(".parquet"):
        rows = _parquet(path)
    elif path.name.endswith(".csv"):
        rows = _csv(path)
    else:
        raise UserError(f"{path}: unknown kind of file; give one of {', '.join(SUFFIXES)}")
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise UserError(f"{path}: the file has no rows")


def read_hub(
    name: str,
    config_name: str | None,
    split: str,
    revision: str | None,
    *,
    data_dir: str | None = None,
    key: str = "path",
) -> tuple[Iterator[Row], str | None]:
    """Return the rows of a split on the Hub (or of its folder ``data_dir``), and the commit that ``revision`` stands
    for (None when offline).

    key: what takes a file in its place, for the error.

    Raises:
        UserError: if the data set cannot be loaded.
    """
    from datasets import load_dataset
    from huggingface_hub import HfApi

    try:
        dataset = load_dataset(name, config_name, split=split, revision=revision, data_dir=data_dir)
    except Exception as error:  # the Hub client raises many kinds; to the user they all mean this
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{name} (split {split}) cannot be loaded from the Hub: {reason}; check the name, or set {key}=FILE"
        ) from error
    try:
        commit = HfApi().dataset_info(name, revision=revision).sha
    except Exception:  # served from the local cache, without a connection
        commit = None
    return (Row(f"{name}/{split} row {n}", dict(row)) for n, row in enumerate(dataset, start=1)), commit


def _saved(path: Path) -> Iterator[Row]:
    import pyarrow
    from datasets import load_from_disk

    try:
        dataset = load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as error:
        raise UserError(f"{path}: cannot be read as a save_to_disk folder ({error})") from error
    for number, row in enumerate(dataset, start=1):
        yield Row(f"{path} row {number}", dict(row))


def _json_lines(path: Path) -> Iterator[Row]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.name.endswith(".gz") else path.open(encoding="utf-8") as f:
            for number, line in enumerate(f, start=1):
                if line.strip():
                    yield _json_row(f"{path} line {number}", line)
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        if isinstance(error, UnicodeDecodeError) and not path.name.endswith(".gz"):
            read_text(path)  # says at which byte of the file, where the error knows that of a block
        raise UserError(f"{path}: cannot be read ({error})") from error


def _json_row(place: str, line: str) -> Row:
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:  # the latter of ten thousand brackets
        return Row(place, {}, f"not valid JSON ({error})")
    return _row(place, values)


def _row(place: str, values: Any) -> Row:
    if not isinstance(values, dict):
        return Row(place, {}, "not a JSON object")
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:  # JSON can hold half a surrogate pair, files and Arrow cannot
        return Row(place, {}, f"text that is not valid Unicode ({error.reason})")
    return Row(place, values)


def _json_array(path: Path) -> Iterator[Row]:
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); one object per line goes into a .jsonl file") from error
    if not isinstance(content, list):
        raise UserError(f"{path}: a list of objects is needed; one object per line goes into a .jsonl file")
    for number, values in enumerate(content, start=1):
        yield _row(f"{path} row {number}", values)


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    try:
        batches = pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024)
        number = 0
        for batch in batches:
            for values in batch.to_pylist():
                number += 1
                yield Row(f"{path} row {number}", values)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path}: cannot be read as Parquet ({error})") from error


def _csv(path: Path) -> Iterator[Row]:
    """Yield the rows of a table with a header; columns of numbers are numbers, a cell without even quotes is None."""
    import pyarrow
    from pyarrow import csv

    empty = csv.ConvertOptions(null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=False)
    number = 0
    try:
        for batch in csv.open_csv(path, parse_options=csv.ParseOptions(newlines_in_values=True), convert_options=empty):
            for values in batch.to_pylist():
                number += 1
                yield Row(f"{path} row {number}", values)
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path}: cannot be read as CSV after row {number} ({first_line(error)})") from error
