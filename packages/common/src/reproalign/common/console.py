"""Where a command writes: its results to standard output, everything on the way to standard error.

A terminal gets colours, bars and lines of its width; a file or a pipe gets plain lines that are never wrapped or cut,
so that ``grep`` finds whole names. Texts are printed as they are: rich would take what stands in brackets or between
colons for markup. ``--quiet``, or ``REPROALIGN_QUIET=1`` in the environment, leaves results, warnings and errors.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

QUIET = "REPROALIGN_QUIET"
UNBROKEN = 100_000  # columns of what is no terminal
AS_IT_IS: Any = {"highlight": False, "markup": False, "emoji": False}
SECONDS = 30.0  # between two lines on progress in a file
TICK = 0.1  # seconds between two moves of a bar
LIBRARIES = r"(transformers|peft|trl|accelerate|datasets|huggingface_hub|torch)\."

Item = TypeVar("Item")


def is_quiet() -> bool:
    """Say whether only results, warnings and errors are wanted."""
    return os.environ.get(QUIET, "") not in ("", "0")


def has_bars() -> bool:
    """Say whether bars are drawn: in a terminal whose user does not want quiet."""
    return sys.stderr.isatty() and not is_quiet()


def quiet_libraries() -> None:
    """Keep off the terminal what libraries say to each other, and their bars where none are drawn.

    Call it before they are imported; processes that are started inherit the latter.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module=LIBRARIES)  # names that will change
    for said in ("fan_in_fan_out is set", "Could not find a config file"):  # what PEFT settles by itself
        warnings.filterwarnings("ignore", said)
    if not has_bars():
        for name in ("HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS"):
            os.environ.setdefault(name, "1")


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


def progress(*, shown: bool = True, size: bool = False) -> Progress:
    """Return bars with a label, a count, the time taken and the time left, for a terminal; a file gets none.

    Args:
        shown: false where another process shows it.
        size: what is counted are bytes.
    """
    columns = (BarColumn(), DownloadColumn() if size else MofNCompleteColumn())
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    label = TextColumn("{task.description}", markup=False)
    return Progress(label, *columns, *times, console=note_console(), disable=not (shown and has_bars()), transient=True)


@contextmanager
def counting(
    label: str, total: int | None, *, done: int = 0, shown: bool = True, size: bool = False
) -> Iterator[Callable[[int], None]]:
    """Yield what is told how much more is done; a bar on standard error shows it, in a file a line twice a minute.

    Args:
        label: what is being done.
        total: how much there is; None: not known.
        done: how much of it was there before.
        shown: false where another process shows it.
        size: what is counted are bytes.
    """
    last = time.monotonic()
    with progress(shown=shown, size=size) as bars:
        bar = bars.add_task(label, total=total, completed=done)

        def advance(count: int = 1) -> None:
            nonlocal last
            bars.advance(bar, count)
            if bars.disable and shown and time.monotonic() - last > SECONDS:
                last = time.monotonic()
                written = decimal if size else str
                (task,) = bars.tasks
                whole = "" if total is None else f" of {written(total)}"
                note(f"{label}: {written(int(task.completed))}{whole}{time_left(task)}")

        yield advance


def track(
    items: Iterable[Item], label: str, *, total: int | None = None, done: int = 0, shown: bool = True
) -> Iterator[Item]:
    """Yield ``items`` while they are counted as in :func:`counting`; ``total`` is their number where they have one."""
    known = done + len(items) if total is None and isinstance(items, Sized) else total
    with counting(label, known, done=done, shown=shown) as advance:
        count, told = 0, time.monotonic()
        for item in items:
            yield item
            count += 1
            if time.monotonic() - told > TICK:  # telling it takes longer than many an item
                advance(count)
                count, told = 0, time.monotonic()


def time_left(task: Task) -> str:
    """Say how long a task of :func:`progress` still takes, behind a comma, if that can be said."""
    seconds = task.time_remaining
    return "" if seconds is None else f", {timedelta(seconds=int(seconds))} left"


def _width(terminal: bool) -> int | None:
    return None if terminal or "COLUMNS" in os.environ else UNBROKEN
