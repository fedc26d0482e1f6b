"""Undisturbed runs, which disturbed ones are held against, and runs killed midway, which others begin with."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults.cases import Case, write_rows
from faults.forks import import_what_commands_import, run
from faults.state import state

MIDWAY = 0.7  # of the file events


@dataclass(frozen=True)
class Base:
    """An undisturbed run of a case.

    Attributes:
        place: the folder that the command was given in.
        interrupted: a copy of it in which the command was killed midway.
        seconds: that it took.
        events: file events that it came to.
        files: fingerprints of what it wrote.
    """

    place: Path
    interrupted: Path
    seconds: float
    events: int
    files: dict[str, str]


class Bases:
    """The undisturbed runs, made once in a working folder."""

    def __init__(self, work: Path) -> None:
        self.work = work

    def place(self, case: Case, place: Path, *, cache: bool) -> Path:
        """Lay out a folder in which a case can run: rows, the runs it reads, and a filled cache or none."""
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        write_rows(place)
        (place / "runs").mkdir()
        for name in case.needs:
            shutil.copytree(self._of(name) / "runs", place / "runs", symlinks=True, dirs_exist_ok=True)
        if cache and (self._of(case.name) / "cache").is_dir():
            shutil.copytree(self._of(case.name) / "cache", place / "cache", symlinks=True)
        return place

    def made(self, case: Case) -> Base | None:
        """Return a case's undisturbed run, if it is there."""
        if not self._file(case).is_file():
            return None
        known = json.loads(self._file(case).read_text(encoding="utf-8"))
        return Base(self._of(case.name), self.work / "interrupted" / case.name, **known["base"])

    def make(self, case: Case) -> Base:
        """Run a case undisturbed, and once more until it is killed midway.

        Raises:
            RuntimeError: if the undisturbed command fails.
        """
        if (base := self.made(case)) is not None:
            import_what_commands_import(json.loads(self._file(case).read_text(encoding="utf-8"))["modules"])
            return base
        place = self.place(case, self._of(case.name), cache=False)
        ended = run(case.words, place, modules=True)
        if ended.code:
            raise RuntimeError(f"{case.name} fails undisturbed (exit {ended.code}): {ended.error}")
        modules = (place / ".said-1" / "modules").read_text(encoding="utf-8").split()
        import_what_commands_import(modules)
        interrupted = self.place(case, self.work / "interrupted" / case.name, cache=False)
        killed = run(case.words, interrupted, kill_at=max(1, int(MIDWAY * ended.events)))
        # The first one took the time of its imports, too.
        known: dict[str, Any] = {"seconds": min(ended.seconds, killed.seconds / MIDWAY), "events": ended.events}
        known["files"] = state(place / case.folder)
        text = json.dumps({"base": known, "modules": modules}, indent=1)
        self._file(case).write_text(text, encoding="utf-8")
        return Base(place, interrupted, **known)

    def _of(self, name: str) -> Path:
        return self.work / "bases" / name

    def _file(self, case: Case) -> Path:
        return self.work / "bases" / f"{case.name}.json"
