"""Where a command writes: its results to standard output, everything on the way to standard error.

A terminal gets colours, bars and lines of its width; a file or a pipe gets plain lines that are never wrapped or cut,
so that ``grep`` finds whole names. Texts are printed as they are: rich would take what stands in brackets or between
colons for markup. ``--quiet``, or ``REPROALIGN_QUIET=1`` in the environment, leaves results, warnings and errors.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

QUIET = "REPROALIGN_QUIET"
UNBROKEN = 100_000  # columns of what is no terminal
AS_IT_IS: Any = {"highlight": False, "markup": False, "emoji": False}
SECONDS = 30.0  # between two lines on progress in a file

Item = TypeVar("Item")


def is_quiet() -> bool:
    """Say whether only results, warnings and errors are wanted."""
    return os.environ.get(QUIET, "") not in ("", "0")


def has_bars() -> bool:
    """Say whether bars are drawn: in a terminal whose user does not want quiet."""
    return sys.stderr.isatty() and not is_quiet()


def result_console() -> Console:
    """Return the console of what was asked for: standard output."""
    return Console(width=_width(sys.stdout.isatty()), **AS_IT_IS)


def note_console() -> Console:
    """Return the console of what is being done, silent under ``--quiet``: standard error."""
    width = _width(sys.stderr.isatty())
    return Console(stderr=True, width=width, **AS_IT_IS, quiet=is_quiet())


def warning_console() -> Console:
    """Return the console of what the user should know, even under ``--quiet``: standard error."""
    return Console(stderr=True, width=_width(sys.stderr.isatty()), **AS_IT_IS)


def say(text: str) -> None:
    """Print one line of the result, whole: what it names, such as a folder, is there to be copied."""
    print(text, flush=True)


def note(text: str, *, style: str | None = None) -> None:
    """Print one line on what is being done, whole, unless the user wants quiet."""
    note_console().print(text, style=style, soft_wrap=True)


def progress(*, shown: bool = True) -> Progress:
    """Return bars with a label, a count, the time taken and the time left, for a terminal; a file gets none.

    Args:
        shown: false where another process shows it.
    """
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    label = TextColumn("{task.description}", markup=False)
    return Progress(label, *columns, console=note_console(), disable=not (shown and has_bars()), transient=True)


def track(items: Sequence[Item], label: str, *, shown: bool = True) -> Iterator[Item]:
    """Yield ``items`` while a bar on standard error counts them; in a file a line does, twice a minute."""
    last = time.monotonic()
    with progress(shown=shown) as bars:
        for done, item in enumerate(bars.track(items, description=label), start=1):
            yield item
            if bars.disable and shown and time.monotonic() - last > SECONDS:
                last = time.monotonic()
                note(f"{label}: {done} of {len(items)}")


def _width(terminal: bool) -> int | None:
    return None if terminal or "COLUMNS" in os.environ else UNBROKEN
