"""Commands that are killed, signalled or started twice."""

from __future__ import annotations

import signal
from typing import Any

from faults.forks import Ended, below, start
from faults.trials import FINISHED, Outcome, Scene

UNDER_WAY = "a run is under way there"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
AGAIN = 0.25  # the share of resumed commands that are killed again


def control(scene: Scene) -> Outcome:
    """Run a case again undisturbed: what differs then is no fault's doing."""
    scene.lay_out()
    ended = start(scene.case.words, scene.place).end()
    return scene.outcome(ended, "undisturbed")


def kill(scene: Scene) -> Outcome:
    """SIGKILL at a random time or file event; the same command again, some killed again, until it has finished."""
    scene.lay_out()
    if scene.rng.random() < 0.5 and scene.base.events:
        event = scene.rng.randint(1, scene.base.events)
        what, killed = f"SIGKILL at file event {event}", start(scene.case.words, scene.place, kill_at=event).end()
    else:
        delay = scene.rng.uniform(0, scene.base.seconds)
        what, killed = f"SIGKILL after {delay:.2f} s", _ended_by(scene, signal.SIGKILL, delay)

    def again() -> dict[str, Any]:
        return {"kill_at": scene.rng.randint(1, scene.base.events)} if scene.rng.random() < AGAIN else {}

    outcome, said = scene.verdict(scene.start_again(again) if killed.code < 0 else killed)
    if outcome == "cannot go on" and killed.code < 0 and "exit -9" in said:
        outcome, said = scene.verdict(scene.start_again())
    late = killed.code == 0 and outcome == "identical"
    return Outcome("too late" if late else outcome, what, said)


def send(scene: Scene) -> Outcome:
    """SIGTERM, SIGINT or SIGUSR1 at a random time: code, record, nobody left, and then the undisturbed result."""
    scene.lay_out()
    number = scene.rng.choice(SIGNALS)
    delay = scene.rng.uniform(0, scene.base.seconds)
    what, ended = f"{number.name} after {delay:.2f} s", _ended_by(scene, number, delay)
    if ended.code == 0:
        return scene.outcome(ended, what, "too late")
    left = below(scene.place)
    if (outcome := misreported(scene, ended, number, what)) is not None:
        return outcome
    if left:
        return Outcome("processes left", what, ", ".join(map(str, left)))
    return scene.outcome(scene.start_again(), what, "interrupted")


def misreported(scene: Scene, ended: Ended, number: int, what: str) -> Outcome | None:
    """Say what is wrong with the last words, the exit code or the record of a signalled command; None if nothing is."""
    status = scene.status()
    if ended.traceback:
        return Outcome("traceback", what, ended.error)
    if ended.code != 128 + number and not (ended.code == -number and status is None):  # before it heeded signals
        return Outcome("another exit code", what, f"exit {ended.code}: {ended.error}")
    if status not in (None, "interrupted", "finished"):
        return Outcome("record untrue", what, f"status {status}")
    return None


def start_twice(scene: Scene) -> Outcome:
    """The same command twice at a random distance: one runs, the other is refused, and the result is right."""
    scene.lay_out()
    delay = scene.rng.uniform(0, scene.base.seconds)
    what = f"again after {delay:.2f} s"
    first = start(scene.case.words, scene.place)
    first.sleep(delay)
    second = start(scene.case.words, scene.place)
    ends = sorted((first.end(), second.end()), key=lambda ended: ended.code)
    if any(ended.traceback for ended in ends):
        return Outcome("traceback", what, next(ended.error for ended in ends if ended.traceback))
    if [ended.code for ended in ends] != [0, 2]:
        said = "; ".join(f"exit {ended.code}: {ended.error}" for ended in ends)
        return Outcome("both ran" if ends[-1].code == 0 else "not one ran and one refused", what, said)
    if not any(words in ends[-1].error for words in (UNDER_WAY, FINISHED)):
        return Outcome("refused for another reason", what, ends[-1].error)
    return scene.outcome(ends[0], what, "refused")


def _ended_by(scene: Scene, number: int, delay: float) -> Ended:
    started = start(scene.case.words, scene.place)
    if started.sleep(delay):
        started.send(number)
    return started.end()
