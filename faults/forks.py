"""Commands in forks of a process that has imported everything, so that a start takes milliseconds.

A fork runs ``main(argv)`` as the console script does, in a folder of its own, in a process group of its own. An audit
hook counts its file events (a file opened for writing, renamed or removed, a folder made) and kills it at one of them.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import psutil

from reproalign.common.command.papers import installed
from reproalign.common.testing import disk

MAINS = {app.command: f"{app.package}.cli" for app in installed()}
MAINS |= {"reproalign": "reproalign.common.cli", "toy": "toy.cli"}
PATIENCE = 600  # seconds; only a command that hangs takes them, however loaded the machine is
LOOK = 0.01  # seconds between two looks whether a process has ended
EVENTS = {"open", "os.rename", "os.remove", "os.mkdir"}
WRITES = os.O_WRONLY | os.O_RDWR


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: its exit code; negative: of the signal that killed it.
        said: what it wrote to stderr.
        printed: what it wrote to stdout.
        seconds: that it ran.
        events: how many file events it came to.
    """

    code: int
    said: str
    printed: str
    seconds: float
    events: int

    @property
    def traceback(self) -> bool:
        """Whether it ended as no command may."""
        return "Traceback (most recent call last)" in self.said

    @property
    def error(self) -> str:
        """What it said last: the error, if it is one."""
        lines = [line.strip() for line in self.said.splitlines() if line.strip()]
        errors = [line for line in lines if "error: " in line]
        return (errors or lines or [""])[-1]


class Started:
    """A command under way."""

    def __init__(self, process: int, place: Path, notes: Path) -> None:
        self.process, self.place = process, place
        self._notes = notes
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self._started

    def sleep(self, seconds: float) -> bool:
        """Wait until so long after the start, but not beyond the command's end; say whether it is still under way."""
        end = self._started + seconds
        while time.monotonic() < end:
            if self._gone():
                return False
            time.sleep(LOOK)
        return not self._gone()

    def send(self, number: int) -> None:
        """Send a signal to the command, which its own process group is not part of."""
        with suppress(ProcessLookupError):
            os.kill(self.process, number)

    def end(self) -> Ended:
        """Wait for the command; one that hangs is killed, with all that it started."""
        if self.sleep(PATIENCE):
            os.killpg(self.process, signal.SIGKILL)
        status = os.waitpid(self.process, 0)[1]
        seconds = self.seconds
        with suppress(ProcessLookupError):  # workers of a killed process would keep their files open
            os.killpg(self.process, signal.SIGKILL)
        said, printed = (
            (self._notes / name).read_text(encoding="utf-8", errors="replace") for name in ("stderr", "stdout")
        )
        events = (self._notes / "events").stat().st_size if (self._notes / "events").is_file() else 0
        return Ended(os.waitstatus_to_exitcode(status), said, printed, seconds, events)

    def _gone(self) -> bool:
        return os.waitid(os.P_PID, self.process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def start(
    words: Sequence[str],
    place: Path,
    *,
    kill_at: int | None = None,
    file_limit: int | None = None,
    modules: bool = False,
) -> Started:
    """Start a command in a fork.

    Args:
        words: the command line.
        place: the folder it is given in; ``cache`` there is its cache.
        kill_at: the file event at which it is killed; None: it is not.
        file_limit: bytes that no file of it may exceed (``RLIMIT_FSIZE``).
        modules: the names of what it imported are left in ``modules`` beside its output.
    """
    number = 1 + sum(1 for _ in place.glob(".said-*"))
    notes = place / f".said-{number}"
    notes.mkdir(parents=True)
    process = os.fork()
    if process == 0:
        _carry_out(words, place, notes, kill_at, file_limit, modules)
    return Started(process, place, notes)


def run(words: Sequence[str], place: Path, **disturbance: Any) -> Ended:
    """Carry out a command in a fork, see :func:`start`."""
    return start(words, place, **disturbance).end()


def _carry_out(
    words: Sequence[str], place: Path, notes: Path, kill_at: int | None, file_limit: int | None, modules: bool
) -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored in what was started in the background
    code = 1
    try:
        os.setpgid(0, 0)
        os.chdir(place)
        for descriptor, name in ((0, os.devnull), (1, notes / "stdout"), (2, notes / "stderr")):
            opened = os.open(name, os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT, 0o666)
            os.dup2(opened, descriptor)
            os.close(opened)
        sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8") for number in (1, 2))  # noqa: SIM115
        sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr  # type: ignore[misc]
        os.environ["REPROALIGN_CACHE"] = str(place / "cache")
        _reseed()
        if file_limit is None:  # what counts is a file too, which a limit would end
            sys.addaudithook(_counting(place, os.open(notes / "events", os.O_WRONLY | os.O_CREAT), kill_at))
        sys.argv = list(words)
        main = import_module(MAINS[words[0]]).main
        with nullcontext() if file_limit is None else disk.file_limit(file_limit):
            code = int(main(list(words[1:])))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        with suppress(OSError):
            traceback.print_exc()
    if modules:
        (notes / "modules").write_text("\n".join(sys.modules), encoding="utf-8")
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _reseed() -> None:
    """Give every fork random states of its own: equal ones would hide what no seed of the run governs."""
    import numpy as np
    import torch

    random.seed()
    np.random.seed()
    torch.seed()  # type: ignore[no-untyped-call]


def _counting(place: Path, notes: int, kill_at: int | None) -> Callable[[str, tuple[Any, ...]], None]:
    """Return an audit hook that counts this process's file events below ``place``, and kills it at one of them."""
    process, below, seen = os.getpid(), f"{place.resolve()}{os.sep}", 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event not in EVENTS or not isinstance(arguments[0], str | os.PathLike) or os.getpid() != process:
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITES):
            return
        path = os.path.abspath(os.fspath(arguments[0]))
        if not str(path).startswith(below):
            return
        seen += 1
        os.write(notes, b".")
        if seen == kill_at:
            os.kill(process, signal.SIGKILL)

    return hook


def import_what_commands_import(modules: Sequence[str]) -> None:
    """Import what a fork had imported, so that the next ones have it."""
    for name in modules:
        if name not in sys.modules:
            with suppress(Exception):
                import_module(name)


def below(place: Path) -> list[psutil.Process]:
    """Return the processes that work in a folder: of a command, and those that it started."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if Path(process.cwd()).is_relative_to(place.resolve()):
                found.append(process)
    return found
