"""What a trial is, and how its end is judged."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from faults.bases import Base, Bases
from faults.cases import Case
from faults.forks import Ended, run
from faults.state import RECORD, differences, state

STARTS = 3  # of the same command at most, until it has finished
FINISHED = "holds this very run, finished"

# Outcomes that say that nothing was lost and nothing was kept quiet.
GOOD = {
    "identical",  # the same result as an undisturbed run's
    "too late",  # the command had ended before, with the same result
    "named",  # refused, and the damaged file is named
    "healed",  # named, skipped or made again, and the result is right
    "harmless",  # not a word, and the result is right
    "refused",  # the second of two starts, naming the first or its end
    "interrupted",  # by a signal, as it should be, and then identical
    "said",  # in one sentence that the disk is full, and then identical
}


@dataclass(frozen=True)
class Outcome:
    """How a trial ended: a word of :data:`GOOD` or of what must not be, what was done, and what was said."""

    outcome: str
    what: str
    said: str = ""

    @property
    def good(self) -> bool:
        """Whether all was as it should be."""
        return self.outcome in GOOD


@dataclass(frozen=True)
class Trial:
    """One disturbance of one case: all that is random about it follows from its key."""

    kind: str
    seed: int
    number: int
    case: Case

    @property
    def key(self) -> str:
        """Tells it from all others."""
        return f"{self.kind}-{self.seed}-{self.number}-{self.case.name}"

    def rng(self) -> random.Random:
        """Return where its random numbers come from."""
        return random.Random(self.key)


@dataclass(frozen=True)
class Scene:
    """What a trial has at hand: its case with the undisturbed run, random numbers, and a folder of its own."""

    case: Case
    base: Base
    bases: Bases
    place: Path
    rng: random.Random

    def lay_out(self, *, cache: bool | None = None) -> None:
        """Prepare the folder; with a filled cache or an empty one, at random where that is not said."""
        self.bases.place(self.case, self.place, cache=self.rng.random() < 0.5 if cache is None else cache)

    def start_again(self, again: Callable[[], dict[str, Any]] = dict) -> Ended:
        """Give the command again, as a user would: until it has finished, :data:`STARTS` times at most."""
        for _ in range(STARTS):
            ended = run(self.case.words, self.place, **again())
            if ended.code >= 0:
                break
        return ended

    def verdict(self, ended: Ended) -> tuple[str, str]:
        """Judge a run by how its last command ended, and by what it wrote: a word, and what belongs to it."""
        if ended.traceback:
            return "traceback", ended.error
        if ended.code and not (ended.code == 2 and FINISHED in ended.error):
            return "cannot go on", f"exit {ended.code}: {ended.error}"
        differing = differences(self.base.files, state(self.place / self.case.folder))
        return ("differs", ", ".join(differing)) if differing else ("identical", "")

    def outcome(self, ended: Ended, what: str, if_identical: str = "identical") -> Outcome:
        """Judge a run likewise; ``if_identical`` is the word for one whose result is right."""
        word, said = self.verdict(ended)
        return Outcome(if_identical if word == "identical" else word, what, said)

    def status(self) -> str | None:
        """Return what the record says of the run; None if it had not begun, or took back what it had."""
        with suppress(OSError):
            record = json.loads((self.place / self.case.folder / RECORD).read_text(encoding="utf-8"))
            return str(record["status"])
        return None


Kind = Callable[[Scene], Outcome]


def as_row(trial: Trial, outcome: Outcome, seconds: float) -> dict[str, Any]:
    """Return what is kept of a trial."""
    words = {"kind": trial.kind, "case": trial.case.name, "command": " ".join(trial.case.words)}
    return {"trial": trial.key, **words, **asdict(outcome), "good": outcome.good, "seconds": round(seconds, 1)}
