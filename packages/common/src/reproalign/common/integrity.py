"""What is read again is what was written: checks of files and folders against their manifests.

What is vouched for: at the first use in a process every byte is read and hashed (1.2 GB/s on one core, and files side
by side). After that a file counts as checked while its size, its time of change and its inode stay what they were. This
is remembered by the process alone and never written down: a bit that flips on a disk changes none of the three, so only
bytes that this process has seen are vouched for, and nothing of what happens to them later.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reproalign.common.manifests import (
    MANIFEST,
    RECORD,
    count_lines,
    digest_of,
    is_sealed,
    manifest_of,
    read_manifest,
)

SMALL = 1 << 26  # bytes of the files that a quick check reads whole: all but weights and data


@dataclass(frozen=True)
class FileFinding:
    """A file that a manifest names.

    Attributes:
        path: of the file.
        bytes: that were written.
        problem: what is wrong, in words that begin with the path; None: it is what was written.
    """

    path: Path
    bytes: int
    problem: str | None = None


def damage(path: Path, *, largest: int | None = None) -> str | None:
    """Say what is wrong with a sealed folder or file, or None if it is what was written.

    Args:
        path: folder or file. Without a manifest it is incomplete.
        largest: bytes above which a file is checked by its size alone.
    """
    return next((found.problem for found in examine(path, largest=largest) if found.problem), None)


def examine(path: Path, *, largest: int | None = None, nested: bool = True) -> Iterator[FileFinding]:
    """Compare each file that a manifest names, those of sealed subfolders too, with what was written.

    Args:
        path: sealed folder or file.
        largest: bytes above which a file is checked by its size alone.
        nested: of subfolders too; otherwise it is only seen to that they have a manifest.
    """
    manifest = manifest_of(path)
    content = read_manifest(manifest)
    if isinstance(content, str):
        yield FileFinding(manifest, 0, content)
        return
    base = manifest.parent
    if content.get("record") and not (base / RECORD).is_file():
        yield FileFinding(base / RECORD, 0, f"{base / RECORD} is missing")
    yield from _compare({base / name: entry for name, entry in content["files"].items()}, largest)
    for name in content.get("folders", []):
        if nested or not (base / name / MANIFEST).is_file():
            yield from examine(base / name, largest=largest)


def damage_of(path: Path, *, largest: int | None = None) -> str | None:
    """Say what is wrong with a file, or with what is in a folder, by the nearest manifest that names it.

    None if it is what was written, or nothing names it.

    Args:
        path: file or folder, sealed or below a sealed folder.
        largest: bytes above which a file is checked by its size alone.
    """
    if is_sealed(path):
        return damage(path, largest=largest)
    for folder in path.absolute().parents:
        if not is_sealed(folder):
            continue
        content = read_manifest(folder / MANIFEST)
        if isinstance(content, str):
            return content
        name = path.absolute().relative_to(folder).as_posix()
        named = [file for file in content["files"] if file == name or file.startswith(f"{name}/")]
        if named:
            entries = {folder / file: content["files"][file] for file in named}
            return next((found.problem for found in _compare(entries, largest) if found.problem), None)
    return None


def is_whole(part: Path) -> bool:
    """Say whether a file or folder is there as it was written; a line says so if it was, and is made again now."""
    if not (part.exists() and is_sealed(part)):  # the run ended while it was written
        return False
    problem = damage(part)
    if problem:
        print(f"reproalign: {problem}; it is made again", file=sys.stderr)
    return problem is None


def _compare(entries: Mapping[Path, Mapping[str, Any]], largest: int | None) -> Iterator[FileFinding]:
    to_read = []
    for file, entry in entries.items():
        problem = _outer_problem(file, entry)
        if problem or (largest is not None and entry["bytes"] > largest):
            yield FileFinding(file, entry["bytes"], problem)
        else:
            to_read.append(file)
    yield from _side_by_side(lambda file: _read_problem(file, entries[file]), to_read, entries)


def _outer_problem(file: Path, entry: Mapping[str, Any]) -> str | None:
    try:
        size = file.stat().st_size
    except OSError:
        return f"{file} is missing"
    if size == entry["bytes"]:
        return None
    lines = f"{count_lines(file)} lines of {entry['lines']}, " if "lines" in entry else ""
    return f"{file} has {lines}{size} bytes, {entry['bytes']} were written (truncated?)"


def _read_problem(file: Path, entry: Mapping[str, Any]) -> str | None:
    try:
        same = digest_of(file) == entry["sha256"]
    except OSError as error:
        return f"{file} is not readable ({error.strerror})"
    return None if same else f"{file} was altered (its SHA-256 is not what was written)"


def _side_by_side(
    problem: Callable[[Path], str | None], files: list[Path], entries: Mapping[Path, Mapping[str, Any]]
) -> Iterator[FileFinding]:
    sizes = [int(entries[file]["bytes"]) for file in files]
    if sum(sizes) < SMALL or len(files) < 2:  # threads would take longer to start
        yield from (FileFinding(file, size, problem(file)) for file, size in zip(files, sizes, strict=True))
        return
    with ThreadPoolExecutor(min(len(files), 8, os.cpu_count() or 1)) as pool:
        yield from map(FileFinding, files, sizes, pool.map(problem, files))
