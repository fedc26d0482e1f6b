"""Who holds a run's folder, and whether that process still runs."""

from __future__ import annotations

import json
import os
import platform
import secrets
from dataclasses import dataclass
from pathlib import Path

from reproalign.common.leftovers import place
from reproalign.common.records.record import now


@dataclass(frozen=True)
class Holder:
    """Who holds a folder.

    Attributes:
        host: name of the machine.
        process: its number there.
        since: when it began to, as a record has the time.
        place: what tells machines, their starts and containers apart: process numbers mean the same in one.
        born: when the process began, in seconds since 1970: numbers are given again.
        token: differs between any two attempts.
    """

    host: str
    process: int
    since: str
    place: str
    born: float
    token: str

    @classmethod
    def me(cls) -> Holder:
        """Return this process."""
        return cls(platform.node(), os.getpid(), now(), place(), _born(os.getpid()), secrets.token_hex(8))

    def is_gone(self) -> bool:
        """Say whether the process is known to have ended; one in another place is not known of."""
        return self.place == place() and abs(_born(self.process) - self.born) > 1


def read_holder(path: Path) -> Holder | None:
    """Return the holder that a file names, or None if it names none."""
    try:
        return Holder(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _born(process: int) -> float:
    import psutil

    try:
        return float(psutil.Process(process).create_time())
    except psutil.Error:
        return 0.0
