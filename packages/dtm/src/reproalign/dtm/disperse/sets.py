"""``data.sets``: which files or Hub data sets are read, checked before anything is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import chain, islice
from pathlib import Path
from typing import Any

from reproalign.common.data.reading import Row, local_path, read_hub, read_local
from reproalign.common.errors import UserError, choose
from reproalign.common.files import sha256_file
from reproalign.dtm.disperse.sources import SOURCES, Source, recognise

PAPER = {"tulu": {"source": "messages"}}  # the paper's corpus, from its home on the Hub


@dataclass(frozen=True)
class DataSet:
    """One entry of ``data.sets``.

    Attributes:
        label: its key, and the source of its rows that name none.
        path: a local file or folder; or
        name: a Hub data set (None as well: the source's home).
        source: how a row is read; None: recognised by the first row's columns.
        split: on the Hub, or the beginning of a file's name in a folder.
        revision: on the Hub.
        config_name: on the Hub.
        first: only so many rows.
    """

    label: str
    path: str | None = None
    name: str | None = None
    source: str | None = None
    split: str = "train"
    revision: str | None = None
    config_name: str | None = None
    first: int | None = None

    @property
    def key(self) -> str:
        """What the user typed."""
        return f"data.sets.{self.label}"


def parse_sets(entries: dict[str, Any]) -> list[DataSet]:
    """Return the data sets that ``data.sets`` names, in order; the paper's if there are none.

    Raises:
        UserError: for an unknown key or source, a missing file, or neither of the two.
    """
    return [_parse(label, entry) for label, entry in (entries or PAPER).items()]


def _parse(label: str, entry: Any) -> DataSet:
    values = {"path": entry} if isinstance(entry, str) else entry
    if not isinstance(values, dict):
        raise UserError(f"data.sets.{label}={entry!r}: give a file, or a mapping such as {{name: org/data}}")
    for key, value in values.items():
        choose(
            f"key of data.sets.{label}", str(key), [field.name for field in fields(DataSet) if field.name != "label"]
        )
        wanted: type = int if key == "first" else str
        if value is not None and (not isinstance(value, wanted) or isinstance(value, bool)):
            raise UserError(f"data.sets.{label}.{key}={value!r} must be {'an integer' if wanted is int else 'text'}")
    made = DataSet(label, **values)
    if made.source is not None:
        choose(f"data.sets.{label}.source", made.source, SOURCES)
    if made.first is not None and made.first < 1:
        raise UserError(f"{made.key}.first={made.first} must be at least 1")
    if made.path and made.name:
        raise UserError(f"{made.key} has both path and name; give the file or the Hub data set")
    if made.path:
        local_path(made.path, made.split, key=made.key)
    elif not made.name and not (made.source and SOURCES[made.source].hub):
        raise UserError(f"{made.key} has neither path nor name, and no source with a home on the Hub; set one of them")
    return made


def open_set(data: DataSet) -> tuple[Iterator[Row], Source, dict[str, Any]]:
    """Return the rows of a data set, how they are read, and where they come from.

    Raises:
        UserError: if it cannot be read, or its first row is of no known source.
    """
    if data.path:
        path = local_path(data.path, data.split, key=data.key)
        rows = read_local(path)
        facts: dict[str, Any] = {"path": data.path, "sha256": _sha256(path)}
    else:
        name = data.name or SOURCES[str(data.source)].hub
        assert name is not None
        rows, commit = read_hub(name, data.config_name, data.split, data.revision, key=f"{data.key}.path")
        facts = {"name": name, "split": data.split, "revision": data.revision, "commit": commit}
    found, rows = _source(data, rows)
    rows = found.group(rows) if found.group else rows
    return islice(rows, data.first), found, {**facts, "source": found.name}


def _source(data: DataSet, rows: Iterator[Row]) -> tuple[Source, Iterator[Row]]:
    if data.source is not None:
        return SOURCES[data.source], rows
    unreadable = []
    for row in rows:
        unreadable.append(row)
        if row.problem is None:
            found = recognise(row.values)
            if found is None:
                raise UserError(
                    f"{row.place}: columns {', '.join(sorted(row.values)) or 'none'} are those of no known source; set "
                    f"{data.key}.source to one of {', '.join(SOURCES)}"
                )
            return found, chain(unreadable, rows)
    raise UserError(f"{data.key}: none of its {len(unreadable)} rows can be read ({unreadable[0].problem})")


def _sha256(path: Path) -> str | None:
    return None if path.is_dir() else sha256_file(path)
