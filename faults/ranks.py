"""Commands of two processes: signalled or killed in all places, or left to their own end."""

from __future__ import annotations

import json
import signal
import time
from contextlib import suppress

import psutil

from faults.endings import SIGNALS
from faults.forks import Ended, Started, below, run, start
from faults.state import RECORD
from faults.trials import Outcome, Scene

LEAVING = 200  # seconds at most until orphans have left: a step, a checkpoint, and the grace that they are given
LOOK = 0.2  # seconds
ABORTED = ("terminate called", "Fatal Python error", "core dumped")
WORKER = "reproalign.common.launch.worker"


def end_alone(scene: Scene) -> Outcome:
    """A command of two processes, undisturbed: exit code 0, the same result, and no process aborts at its end."""
    scene.lay_out()
    ended = run(scene.case.words, scene.place)
    if (outcome := _aborted(ended, "undisturbed")) is not None:
        return outcome
    outcome, said = scene.verdict(ended)
    return Outcome(outcome, "undisturbed", said)


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
        outcome, said = scene.verdict(ended)
        return Outcome("too late" if outcome == "identical" else outcome, what, said)
    if left := _left(scene):
        return Outcome("processes left", what, ", ".join(map(str, left)))
    if (outcome := _aborted(ended, what)) is not None:
        return outcome
    if wrong := _wrong(scene, ended, number, whom):
        return Outcome("told wrong", what, wrong)
    outcome, said = scene.verdict(scene.start_again())
    return Outcome("interrupted" if outcome == "identical" and not killed else outcome, what, said)


def _wrong(scene: Scene, ended: Ended, number: signal.Signals, whom: str) -> str:
    """Say what is wrong with an exit code, a record or a sentence; nothing if all are right."""
    status = None
    with suppress(OSError):  # it had not begun, or took back what it had
        status = json.loads((scene.place / scene.case.folder / RECORD).read_text(encoding="utf-8"))["status"]
    if number != signal.SIGKILL:
        fine = ended.code == 128 + number or (ended.code == -number and status is None)  # before it heeded signals
        true = status in (None, "interrupted", "finished")
        if ended.traceback:
            return f"traceback: {ended.error}"
    else:
        fine = ended.code == (-number if whom == "command" else 1)
        # What a rank that was killed, or saw its peer go, had been doing may have been the record's last word.
        true = status in (None, "interrupted", "failed", "running", "finished")
        if whom != "command" and "was killed by SIGKILL" not in ended.said:
            return f"not a word of the kill: {ended.said[-500:]}"
    return "" if fine and true else f"exit {ended.code}, record {status}: {ended.error}"


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
    launchers = command.children()
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
