"""Manifests: the SHA-256 and size of every file of a folder, by which what is read again can be compared.

A sealed folder holds ``manifest.json``; beside a file that is sealed alone lies ``NAME.manifest.json``:

    {"files": {"part.arrow": {"sha256": "…", "bytes": 480}, "rows.jsonl": {…, "lines": 24}}, "folders": ["model"],
     "record": true, "sha256": "…"}

``folders`` are subfolders that are sealed themselves, and ``record`` says whether there is a ``run.json``. The
last entry is of the manifest's own content. The checks are in :mod:`~reproalign.common.integrity`.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from reproalign.common.files import follow_umask, sha256_file, write_json
from reproalign.common.signing import SUM, is_as_signed, signed

MANIFEST = "manifest.json"
CARD = "README.md"  # for readers, who may write on it
RECORD = "run.json"  # signed itself, and goes on changing
CURVES = "events.out.tfevents"  # of TensorBoard, whose writer may add to them until the process ends
SETTLED = 1.0  # seconds without a change after which a file's time of change tells it from what it was
_CHECKPOINT = re.compile(r"checkpoint-\d+")  # sealed when written, removed when the run likes

_known: dict[tuple[str, int, int, int], str] = {}


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


def count_lines(file: Path) -> int:
    """Return how many lines a file has."""
    with file.open("rb") as stream:
        return sum(block.count(b"\n") for block in iter(lambda: stream.read(1 << 20), b""))


def _entry(file: Path, known: str | None = None) -> dict[str, Any]:
    entry = {"sha256": known or digest_of(file), "bytes": file.stat().st_size}
    return {**entry, "lines": count_lines(file)} if file.suffix == ".jsonl" else entry


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
