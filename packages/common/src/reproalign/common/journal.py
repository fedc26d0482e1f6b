"""Files that grow line by line while work goes on, and are read again after an interruption.

Beside ``rows.jsonl`` lies ``.rows.jsonl.sums`` with the beginning of each line's SHA-256, written after the line, until
the run has finished. A line that was altered, or whose writing was cut off, is removed with all that follow it: their
work is done again.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from reproalign.common.files import write_text

SUMS = ".sums"


@contextmanager
def growing(path: Path) -> Iterator[Callable[[str], None]]:
    """Yield what appends text, one or more whole lines, and hands it to the system at once.

    :func:`recover_lines` must have been called before if ``path`` may be there.
    """
    with path.open("a", encoding="utf-8") as lines, sums_of(path).open("a", encoding="ascii") as sums:

        def write(text: str) -> None:
            lines.write(text)
            lines.flush()
            sums.write("".join(f"{_sum(line)}\n" for line in text.encode().split(b"\n")[:-1]))
            sums.flush()

        yield write


def recover_lines(path: Path) -> list[str]:
    """Return the lines that are whole; the first that is not, and what follows it, is removed from the file.

    There are none if there is no such file. Lines without sums, as earlier versions wrote them, count as whole if they
    are UTF-8.
    """
    if not path.is_file():
        sums_of(path).unlink(missing_ok=True)
        return []
    *found, rest = path.read_bytes().split(b"\n")
    known = _read_sums(path)
    lines: list[str] = []
    for number, line in enumerate(found):
        if known is not None and number >= len(known):  # the run ended between a line and its sum
            break
        try:
            if known is not None and _sum(line) != known[number]:
                raise ValueError
            lines.append(line.decode())
        except ValueError:
            print(
                f"reproalign: {path} line {number + 1} was altered since it was written; the work of that line and of "
                "those after it is done again",
                file=sys.stderr,
            )
            break
    if rest or len(lines) < len(found) or known is None or len(known) > len(lines):
        _write(path, lines, rewrite=bool(rest) or len(lines) < len(found))
    return lines


def keep_lines(path: Path, count: int) -> None:
    """Remove all but the first ``count`` lines."""
    _write(path, recover_lines(path)[:count], rewrite=True)


def sweep_sums(folder: Path) -> None:
    """Remove all sums below a folder whose files do not grow any more."""
    for path in folder.rglob(f".*{SUMS}"):
        path.unlink()


def sums_of(path: Path) -> Path:
    """Return the file with the sums of a file's lines."""
    return path.with_name(f".{path.name}{SUMS}")


def _write(path: Path, lines: list[str], *, rewrite: bool) -> None:
    if rewrite:
        write_text(path, "".join(f"{line}\n" for line in lines))
    write_text(sums_of(path), "".join(f"{_sum(line.encode())}\n" for line in lines))


def _read_sums(path: Path) -> list[str] | None:
    try:
        return sums_of(path).read_text(encoding="ascii", errors="replace").split("\n")[:-1]
    except FileNotFoundError:
        return None


def _sum(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()[:16]
