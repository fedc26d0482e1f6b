"""Commands of two processes: signalled or killed in all places, or left to their own end."""

from __future__ import annotations

import signal
import time
from contextlib import suppress

import psutil

from faults.endings import SIGNALS, misreported
from faults.forks import Ended, Started, below, run, start
from faults.trials import Outcome, Scene

LEAVING = 200  # seconds at most until orphans have left: a step, a checkpoint, and the grace that they are given
LOOK = 0.2  # seconds
ABORTED = ("terminate called", "Fatal Python error", "core dumped")
WORKER = "reproalign.common.launch.worker"


def end_alone(scene: Scene) -> Outcome:
    """A command of two processes, undisturbed: exit code 0, the same result, and no process aborts at its end."""
    scene.lay_out()
    ended = run(scene.case.words, scene.place)
    return _aborted(ended, "undisturbed") or scene.outcome(ended, "undisturbed")


def disturb(scene: Scene) -> Outcome:
    """A signal to a command of two processes, its launcher or all of them, or SIGKILL to any one: none is left."""
    scene.lay_out()
    number = scene.rng.choice((*SIGNALS, signal.SIGKILL))
    killed = number == signal.SIGKILL
    whom = scene.rng.choice(("command", "launcher", "0", "1") if killed else ("command", "launcher", "everyone"))
    delay = scene.rng.uniform(0, scene.base.seconds)
    what = f"{number.name} to {'rank ' * whom.isdigit()}{whom} after {delay:.1f} s"
    started = start(scene.case.words, scene.place)
    sent = started.sleep(delay) and _send(started, number, whom)
    ended = started.end()
    if not sent or ended.code == 0:
        return scene.outcome(ended, what, "too late")
    if left := _left(scene):
        return Outcome("processes left", what, ", ".join(map(str, left)))
    wrong = _misreported_kill(scene, ended, whom, what) if killed else misreported(scene, ended, number, what)
    if (outcome := _aborted(ended, what) or wrong) is not None:
        return outcome
    return scene.outcome(scene.start_again(), what, "identical" if killed else "interrupted")


def _misreported_kill(scene: Scene, ended: Ended, whom: str, what: str) -> Outcome | None:
    """Likewise of a command one of whose processes was killed: a rank that saw its peer go may leave a traceback."""
    if whom != "command" and "was killed by SIGKILL" not in ended.said:
        return Outcome("not a word of the kill", what, ended.said[-500:])
    if ended.code != (-signal.SIGKILL if whom == "command" else 1):
        return Outcome("another exit code", what, f"exit {ended.code}: {ended.error}")
    # The record's last word may be of before the kill.
    if (status := scene.status()) not in (None, "interrupted", "failed", "running", "finished"):
        return Outcome("record untrue", what, f"status {status}")
    return None


def _send(started: Started, number: int, whom: str) -> bool:
    """Send a signal as soon as there is someone to take it; say whether there was."""
    while started.sleep(started.seconds + LOOK):
        with suppress(psutil.Error):
            targets = _targets(psutil.Process(started.process), whom)
            for target in targets:
                with suppress(psutil.NoSuchProcess):
                    target.send_signal(number)
            if targets:
                return True
    return False


def _targets(command: psutil.Process, whom: str) -> list[psutil.Process]:
    """Return whom a signal is for; none while it has not been started."""
    launchers: list[psutil.Process] = command.children()
    ranks = [child for launcher in launchers for child in launcher.children() if WORKER in child.cmdline()]
    if whom == "command":
        return [command]
    if whom == "launcher":
        return launchers
    if whom == "everyone":
        return [*ranks, *launchers, command]
    return [rank for rank in ranks if rank.environ().get("RANK") == whom]


def _left(scene: Scene) -> list[psutil.Process]:
    end = time.monotonic() + LEAVING
    while (left := below(scene.place)) and time.monotonic() < end:
        time.sleep(LOOK)
    return left


def _aborted(ended: Ended, what: str) -> Outcome | None:
    lines = [line for line in ended.said.splitlines() if any(words in line for words in ABORTED)]
    return Outcome("aborted", what, lines[0]) if lines else None
