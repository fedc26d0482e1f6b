"""Which runs a run's inputs came from, and which runs it started."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.tree import Tree

from reproalign.common.errors import UserError
from reproalign.common.files import sha256_file
from reproalign.common.manifests import RECORD
from reproalign.common.mappings import flatten
from reproalign.common.signing import SUM, is_as_signed

ALTERED = "put it back from a copy, or delete it, and what lies beside it counts as of no run"


def input_runs(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the recorded runs whose files a configuration names.

    A value that is an existing path inside a run's folder, at whatever depth, counts: ``model.name=runs/a/model``
    stands for the run ``runs/a``. The run's own ``output_dir`` does not count.

    Returns:
        key -> ``run`` (its folder), ``command``, ``started``, ``status`` and the SHA-256 of its record.
    """
    found: dict[str, dict[str, Any]] = {}
    for key, value in flatten({name: value for name, value in config.items() if name != "output_dir"}).items():
        for name, word in _words(key, value):
            folder = run_folder(word)
            record = None if folder is None else read_plain(folder)
            if folder is not None and record is not None:
                facts = {fact: record.get(fact) for fact in ("command", "started", "status")}
                found[name] = {"run": str(folder), **facts, "record_sha256": sha256_file(folder / RECORD)}
    return found


def training_config(model: str) -> tuple[Path, dict[str, Any]] | None:
    """Return the run that a model's folder lies in, and its configuration; None for a model of no recorded run."""
    folder = run_folder(model)
    record = None if folder is None else read_plain(folder)
    return None if folder is None or record is None else (folder, dict(record.get("config") or {}))


def read_plain(folder: Path) -> dict[str, Any] | None:
    """Return the record in ``folder``; None if there is none.

    Raises:
        UserError: if it was altered.
    """
    file = folder / RECORD
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except OSError:
        return None
    except ValueError as error:
        raise UserError(f"{file}: not valid JSON ({error}); {ALTERED}") from error
    if not isinstance(record, dict):
        return None
    check_written(record, file)
    return record if "command" in record else None


def check_written(record: dict[str, Any], file: Path) -> None:
    """Refuse a record that is not what was written; one of an earlier version is not signed, and taken as it is.

    Raises:
        UserError: naming the file.
    """
    if not is_as_signed(record) or (SUM not in record and record.get("format", 1) != 1):
        raise UserError(f"{file} was altered (its SHA-256 is not what was written); {ALTERED}")


def family_tree(folder: Path, record: dict[str, Any]) -> Tree | None:
    """Draw the runs that a record's inputs came from, and those before them, and the runs it started with theirs.

    None if there are no such runs. A run whose folder is gone or whose record has changed since is marked.
    """
    tree = Tree(str(folder))
    if record.get("parent"):
        tree.add(f"started by {record['parent']}")
    _add_inputs(tree, record, {folder.resolve()})
    _add_children(tree, folder, record)
    return tree if tree.children else None


def _add_inputs(tree: Tree, record: dict[str, Any], seen: set[Path], within: Path | None = None) -> None:
    """Add the runs that inputs came from, but for those ``within`` a folder, which are drawn there."""
    for key, entry in record.get("inputs", {}).items():
        folder = Path(entry["run"])
        if within is not None and folder.resolve().is_relative_to(within):
            tree.add(f"{key} from {folder.resolve().relative_to(within)}")
            continue
        before, mark = _read(folder, entry)
        branch = tree.add(f"{key} from {entry['run']}{mark}: {entry['command']}")
        if before is not None and folder.resolve() not in seen:
            _add_inputs(branch, before, seen | {folder.resolve()})


def _add_children(tree: Tree, folder: Path, record: dict[str, Any]) -> None:
    for name, entry in record.get("children", {}).items():
        place = folder / name  # a folder that was moved takes its children along
        child, mark = _read(place, entry)
        branch = tree.add(f"started {name}: {entry['status']}{mark}")
        if child is not None:
            _add_inputs(branch, child, {place.resolve()}, within=folder.resolve())
            _add_children(branch, place, child)


def _read(folder: Path, entry: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """Return the record in a folder, and how it stands to the one that an entry is about."""
    try:
        record = read_plain(folder)
    except UserError:
        return None, " (its record was altered)"
    if record is None:
        return None, " (gone)" if "record_sha256" in entry else ""
    known = entry.get("record_sha256")
    return record, " (its record has changed since)" if known and sha256_file(folder / RECORD) != known else ""


def _words(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, list):
        for index, entry in enumerate(value):
            yield from _words(f"{key}[{index}]", entry)


def run_folder(word: str) -> Path | None:
    """Return the nearest folder with a record that the path ``word`` is, or lies in."""
    if os.sep not in word and not os.path.exists(word):  # most values are no paths, and some too long for one
        return None
    try:
        path = Path(word).expanduser()
        if not path.exists():
            return None
    except (OSError, RuntimeError, ValueError):  # too long, an unknown user's home, a null character
        return None
    return next((folder for folder in (path, *path.parents) if (folder / RECORD).is_file()), None)
