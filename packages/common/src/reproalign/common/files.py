"""Files written whole or not at all, and their fingerprints."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reproalign.common.errors import UserError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; move it to ``path`` when the block ends well, remove it otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    follow_umask(temporary)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def follow_umask(*paths: Path) -> None:
    """Give files that were made private (mkstemp and safetensors do) the mode of any other, so that groups can share.

    Args:
        paths: files, or folders with all that lies in them.
    """
    umask = os.umask(0)
    os.umask(umask)
    for path in paths:
        for file in path.rglob("*") if path.is_dir() else (path,):
            if file.is_file() and not file.is_symlink() and stat.S_IMODE(file.stat().st_mode) == 0o600:
                file.chmod(0o666 & ~umask)


@contextmanager
def space_needed(what: str) -> Iterator[None]:
    """Turn a disk that fills up inside the block, or a file beyond the user's limit, into one sentence.

    Raises:
        UserError: naming ``what``, a key with its folder.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise UserError(
            f"{what}: no space to write ({error.strerror}); free some, and give the same command again"
        ) from error


def put_in_place(made: Path, folder: Path) -> None:
    """Give a folder that is whole its name; what a run that was killed right after that left there is replaced."""
    shutil.rmtree(folder, ignore_errors=True)
    made.rename(folder)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` (UTF-8) to ``path`` whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return rows as CSV below their header; None is an empty field."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return stream.getvalue()


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all.

    Raises:
        ValueError: if ``value`` holds NaN or an infinity, which JSON cannot carry.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_text(path: Path, key: str = "") -> str:
    """Read a text.

    Args:
        path: of the file.
        key: what the user named it by, ``key=``.

    Raises:
        UserError: if it cannot be read, or is not UTF-8, naming the first byte that is not.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{key}{path}: cannot be read ({(error.strerror or 'not possible').lower()})") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{key}{path}: not UTF-8 at byte {error.start + 1}; save it as UTF-8") from error


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Return the SHA-256 of ``value``'s canonical JSON (sorted keys, no spaces), in hex."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
