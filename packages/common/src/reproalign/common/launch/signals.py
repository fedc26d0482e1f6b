"""How a signal ends a process: at a safe point of the work where there is one, else at once.

SIGINT is Ctrl-C, SIGTERM the end of a job (SLURM's scancel, Kubernetes, docker stop), SIGUSR1 SLURM's warning before a
job's time is over. All three ask for the same. A second one, :data:`SAME` seconds later or more, ends the process at
once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import FrameType
from typing import Any

from reproalign.common.errors import Interruption

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
SAME = 1.0  # seconds: a scheduler signals a launcher and its ranks, and the launcher hands it on to the ranks
LOOK = 0.5  # seconds between two looks at the parent process
GRACE = 120.0  # seconds for the end of an orphaned process: of a step, and of a checkpoint


class _State:
    """What this process was asked for."""

    def __init__(self) -> None:
        self.has_safe_points = False
        self.asked: signal.Signals | None = None
        self.when = -SAME
        self.hook: Callable[[Any], Any] = sys.__unraisablehook__


_state = _State()


def heed_signals() -> None:
    """Let each of :data:`ENDING` raise :class:`~reproalign.common.errors.Interruption`, or wait for a safe point.

    Processes that this one forks die of SIGTERM as ever, from their first moment, and leave the others to this one: a
    terminal signals all of them, and workers that load data for the last step before a checkpoint must not be gone.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    _state.asked, _state.when = None, -SAME
    for number in ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:  # `command &` in a script is not ended by the script's Ctrl-C
            signal.signal(number, _on_signal)
    _spare_forks()
    if sys.unraisablehook is not _on_unraisable:
        _state.hook, sys.unraisablehook = sys.unraisablehook, _on_unraisable


@contextmanager
def safe_points() -> Iterator[None]:
    """Let a signal wait in this block, for work that looks at :func:`asked` at each of its safe points."""
    _state.has_safe_points = True
    try:
        yield
    finally:
        _state.has_safe_points = False


def asked() -> signal.Signals | None:
    """Return the signal that asks this process to end, if one does."""
    return _state.asked


def _on_signal(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    if now - _state.when < SAME:
        return
    first, _state.asked, _state.when = _state.asked is None, signal.Signals(number), now
    if not (first and _state.has_safe_points):
        raise Interruption(number)
    if os.environ.get("RANK", "0") == "0":
        # Not by print: the signal may have come in the middle of one.
        text = f"{_state.asked.name}: this step is finished and a checkpoint written; once more ends at once\n"
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, text.encode())


def _on_unraisable(unraisable: Any) -> None:
    """Signal again what came in a callback of a weak reference or in a ``__del__``: Python drops exceptions there."""
    if not isinstance(unraisable.exc_value, Interruption):
        _state.hook(unraisable)
        return
    _state.asked, _state.when = None, -SAME
    again = threading.Timer(0.05, os.kill, (os.getpid(), unraisable.exc_value.number))
    again.daemon = True
    again.start()


@cache
def _spare_forks() -> None:
    """Hold SIGTERM back while a process forks: what comes before Python is ready in the child would be forgotten."""
    held = {signal.SIGTERM}

    def hold() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, held)

    def release() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, held)

    def begin() -> None:
        for number in ENDING:
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
        release()

    os.register_at_fork(before=hold, after_in_parent=release, after_in_child=begin)


def end_with_parent() -> None:
    """Send this process SIGTERM once its parent is gone, and end it :data:`GRACE` seconds later whatever it does."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
