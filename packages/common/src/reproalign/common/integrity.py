"""What is read again is what was written: manifests with the SHA-256 and size of every file, and checks against them.

A sealed folder holds ``manifest.json``; beside a file that is sealed alone lies ``NAME.manifest.json``:

    {"files": {"part.arrow": {"sha256": "…", "bytes": 480}, "rows.jsonl": {…, "lines": 24}}, "folders": ["model"],
     "record": true, "sha256": "…"}

``folders`` are subfolders that are sealed themselves, and ``record`` says whether there is a ``run.json``. The
last entry is of the manifest's own content.

What is vouched for: at the first use in a process every byte is read and hashed (1.2 GB/s on one core, and files side
by side). After that a file counts as checked while its size, its time of change and its inode stay what they were. This
is remembered by the process alone and never written down: a bit that flips on a disk changes none of the three, so only
bytes that this process has seen are vouched for, and nothing of what happens to them later.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reproalign.common.files import follow_umask, sha256_file, write_json
from reproalign.common.signing import SUM, is_as_signed, signed

MANIFEST = "manifest.json"
CARD = "README.md"  # for readers, who may write on it
RECORD = "run.json"  # signed itself, and goes on changing
CURVES = "events.out.tfevents"  # of TensorBoard, whose writer may add to them until the process ends
SMALL = 1 << 26  # bytes of the files that a quick check reads whole: all but weights and data
SETTLED = 1.0  # seconds without a change after which a file's time of change tells it from what it was
_CHECKPOINT = re.compile(r"checkpoint-\d+")  # sealed when written, removed when the run likes

_known: dict[tuple[str, int, int, int], str] = {}


@dataclass(frozen=True)
class Finding:
    """A file that a manifest names.

    Attributes:
        path: of the file.
        bytes: that were written.
        problem: what is wrong, in words that begin with the path; None: it is what was written.
    """

    path: Path
    bytes: int
    problem: str | None = None


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file; read once by a process, while size, time of change and inode stay the same."""
    state = path.stat()
    key = (str(path.absolute()), state.st_size, state.st_mtime_ns, state.st_ino)
    if key not in _known:
        found = sha256_file(path)
        if time.time() - state.st_mtime < SETTLED:  # a further change might leave the very same time
            return found
        _known[key] = found
    return _known[key]


def seal(path: Path, known: Mapping[str, str] | None = None) -> None:
    """Write the manifest of a folder, or of a file: the mark that it is complete.

    Of a folder that is everything below it but hidden files, cards (``README.md``), TensorBoard's events, checkpoints,
    which the run that wrote them removes, other runs, and folders with a manifest of their own, which are named.

    Args:
        path: all in it was written.
        known: SHA-256 of files by their names, which are not read again.
    """
    follow_umask(path)
    if path.is_file():
        write_json(manifest_of(path), signed({"files": {path.name: _entry(path)}}))
        return
    files: dict[str, dict[str, Any]] = {}
    folders: list[str] = []
    for place in sorted(_walk(path)):
        name = place.relative_to(path).as_posix()
        if place.is_dir():
            folders.append(name)
        else:
            files[name] = _entry(place, (known or {}).get(name))
    record = (path / RECORD).is_file()
    write_json(path / MANIFEST, signed({"files": files, "folders": folders, "record": record}))


def damage(path: Path, *, largest: int | None = None) -> str | None:
    """Say what is wrong with a sealed folder or file, or None if it is what was written.

    Args:
        path: folder or file. Without a manifest it is incomplete.
        largest: bytes above which a file is checked by its size alone.
    """
    return next((found.problem for found in examine(path, largest=largest) if found.problem), None)


def examine(path: Path, *, largest: int | None = None, nested: bool = True) -> Iterator[Finding]:
    """Compare each file that a manifest names, those of sealed subfolders too, with what was written.

    Args:
        path: sealed folder or file.
        largest: bytes above which a file is checked by its size alone.
        nested: of subfolders too; otherwise it is only seen to that they have a manifest.
    """
    manifest = manifest_of(path)
    content = read_manifest(manifest)
    if isinstance(content, str):
        yield Finding(manifest, 0, content)
        return
    base = manifest.parent
    if content.get("record") and not (base / RECORD).is_file():
        yield Finding(base / RECORD, 0, f"{base / RECORD} is missing")
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


def is_sealed(path: Path) -> bool:
    """Say whether a folder or file has a manifest of ours; other tools write a ``manifest.json``, too."""
    try:
        content = json.loads(manifest_of(path).read_text(encoding="utf-8"))
    except OSError:
        return False
    except ValueError:  # what is left of one
        return True
    return isinstance(content, dict) and bool({"files", "folders", SUM} & content.keys())


def read_manifest(path: Path) -> dict[str, Any] | str:
    """Return the content of a manifest, or what is wrong with it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"{path.parent} is incomplete (no {path.name}: it is lost, or the run ended while all was written)"
    except (OSError, ValueError) as error:
        return f"{path} is not readable ({error})"
    if not _is_manifest(content) or not is_as_signed(content):
        return f"{path} was altered (its content is not what was written)"
    known: dict[str, Any] = content
    return known


def manifest_of(path: Path) -> Path:
    """Return where the manifest of a folder or of a file is."""
    return path / MANIFEST if path.is_dir() else path.with_name(f"{path.name}.{MANIFEST}")


def _entry(file: Path, known: str | None = None) -> dict[str, Any]:
    entry = {"sha256": known or digest_of(file), "bytes": file.stat().st_size}
    return {**entry, "lines": _count_lines(file)} if file.suffix == ".jsonl" else entry


def _walk(folder: Path) -> Iterator[Path]:
    """Yield what a folder's manifest names: files, and folders that have their own."""
    for place in folder.iterdir():
        if place.name.startswith((".", CURVES)) or place.name in (MANIFEST, CARD):
            continue
        if place.is_file() and place.name != RECORD:
            yield place
        elif place.is_dir() and not _CHECKPOINT.fullmatch(place.name):
            if is_sealed(place):
                yield place
            elif not (place / RECORD).is_file():
                yield from _walk(place)


def _is_manifest(content: Any) -> bool:
    return (
        isinstance(content, dict)
        and isinstance(content.get("files"), dict)
        and all(
            isinstance(entry, dict) and isinstance(entry.get("sha256"), str) and isinstance(entry.get("bytes"), int)
            for entry in content["files"].values()
        )
        and isinstance(content.get("folders", []), list)
        and all(isinstance(name, str) for name in content.get("folders", []))
    )


def _compare(entries: Mapping[Path, Mapping[str, Any]], largest: int | None) -> Iterator[Finding]:
    to_read = []
    for file, entry in entries.items():
        problem = _outer_problem(file, entry)
        if problem or (largest is not None and entry["bytes"] > largest):
            yield Finding(file, entry["bytes"], problem)
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
    lines = f"{_count_lines(file)} lines of {entry['lines']}, " if "lines" in entry else ""
    return f"{file} has {lines}{size} bytes, {entry['bytes']} were written (truncated?)"


def _read_problem(file: Path, entry: Mapping[str, Any]) -> str | None:
    try:
        same = digest_of(file) == entry["sha256"]
    except OSError as error:
        return f"{file} is not readable ({error.strerror})"
    return None if same else f"{file} was altered (its SHA-256 is not what was written)"


def _side_by_side(
    problem: Callable[[Path], str | None], files: list[Path], entries: Mapping[Path, Mapping[str, Any]]
) -> Iterator[Finding]:
    sizes = [int(entries[file]["bytes"]) for file in files]
    if sum(sizes) < SMALL or len(files) < 2:  # threads would take longer to start
        yield from (Finding(file, size, problem(file)) for file, size in zip(files, sizes, strict=True))
        return
    with ThreadPoolExecutor(min(len(files), 8, os.cpu_count() or 1)) as pool:
        yield from map(Finding, files, sizes, pool.map(problem, files))


def _count_lines(file: Path) -> int:
    with file.open("rb") as stream:
        return sum(block.count(b"\n") for block in iter(lambda: stream.read(1 << 20), b""))
