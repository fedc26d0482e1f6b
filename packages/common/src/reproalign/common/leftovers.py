"""Folders that are made beside what they become, and removed once the process that made them is known to be dead."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import tempfile
import time
from contextlib import suppress
from pathlib import Path

OLD = 3 * 86400.0  # seconds without a change after which what another machine left counts as abandoned
_MADE = re.compile(r"\.making-(?P<place>\w+)-(?P<process>\d+)-\w+")
_OTHERS = re.compile(r"tmp\w{8}|\.(building|tiny)-\w+")  # of `datasets` while it writes, and of earlier versions


def make_beside(path: Path) -> Path:
    """Make and return a new folder beside ``path``; what dead processes left there is removed first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep_dead(path.parent)
    return Path(tempfile.mkdtemp(dir=path.parent, prefix=f".making-{_short_place()}-{os.getpid()}-"))


def place() -> str:
    """Return what processes have in common that know each other by their numbers: machine, its start, container."""
    found = [platform.node()]
    with suppress(OSError):
        found.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
        found.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(found)


def sweep_dead(folder: Path) -> None:
    """Remove what processes of this machine that are dead left half made in ``folder``, and what is old."""
    for path in list(folder.iterdir()):
        if _is_dead(path):
            with suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_dead(path: Path) -> bool:
    made = _MADE.fullmatch(path.name)
    if made and made["place"] == _short_place():
        import psutil

        return not psutil.pid_exists(int(made["process"]))
    try:
        return bool(made or _OTHERS.fullmatch(path.name)) and time.time() - path.stat().st_mtime > OLD
    except OSError:  # gone meanwhile
        return False


def _short_place() -> str:
    return hashlib.sha256(place().encode()).hexdigest()[:12]
