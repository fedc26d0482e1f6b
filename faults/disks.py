"""Disks that are full, and folders that may not be written."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from faults.forks import Ended, run
from faults.trials import Outcome, Scene

SMALLEST = 4096  # bytes; what a command says must find room


def fill(scene: Scene) -> Outcome:
    """Let files or the disk be too small, or folders read-only; then give the same command again with room."""
    ways = [_limited, *([_small, _read_only] if _can_mount() else [_no_rights] if os.geteuid() else [])]
    return scene.rng.choice(ways)(scene)


def _limited(scene: Scene) -> Outcome:
    scene.lay_out()
    largest = max(path.stat().st_size for path in (scene.base.place / "runs").rglob("*") if path.is_file())
    limit = int(math.exp(scene.rng.uniform(math.log(SMALLEST), math.log(max(largest, 2 * SMALLEST)))))
    return _judged(scene, f"no file beyond {limit} bytes", run(scene.case.words, scene.place, file_limit=limit))


def _small(scene: Scene) -> Outcome:
    scene.lay_out()
    top = scene.rng.choice(["runs", "cache"])
    size = _size(scene.place / top) + int(scene.rng.random() * _size(scene.base.place / top))
    with _mounted(scene.place / top, size) as remount:
        ended = run(scene.case.words, scene.place)
        remount("size=1g")
        return _judged(scene, f"{top} on a disk of {size} bytes", ended)


def _read_only(scene: Scene) -> Outcome:
    scene.lay_out()
    top = scene.rng.choice(["runs", "cache"])
    with _mounted(scene.place / top, 1 << 30) as remount:
        remount("ro")
        ended = run(scene.case.words, scene.place)
        remount("rw")
        return _judged(scene, f"{top} on a read-only disk", ended)


def _no_rights(scene: Scene) -> Outcome:
    scene.lay_out()
    top = scene.place / scene.rng.choice(["runs", "cache"])
    top.mkdir(exist_ok=True)
    top.chmod(0o500)
    ended = run(scene.case.words, scene.place)
    top.chmod(0o700)
    return _judged(scene, f"{top.name} without the right to write", ended)


def _judged(scene: Scene, what: str, ended: Ended) -> Outcome:
    if ended.traceback:
        return Outcome("traceback", what, ended.error)
    if ended.code == 0:
        return scene.outcome(ended, what, "too late")
    errors = [line for line in ended.said.splitlines() if "error: " in line]
    if ended.code != 2 or len(errors) != 1:
        return Outcome("not one sentence", what, f"exit {ended.code}: {ended.said[-500:]}")
    return scene.outcome(scene.start_again(), f"{what}: {errors[0]}", "said")


@cache
def _can_mount() -> bool:
    """Whether this user may mount a file system of its own here."""
    if os.geteuid() or shutil.which("mount") is None:
        return False
    folder = Path(os.environ.get("TMPDIR", "/tmp"), f"reproalign-mount-{os.getpid()}")
    folder.mkdir()
    try:
        with _mounted(folder, SMALLEST):
            return True
    except subprocess.CalledProcessError:
        return False
    finally:
        folder.rmdir()


@contextmanager
def _mounted(folder: Path, size: int) -> Iterator[Callable[[str], None]]:
    """Put what a folder holds on a file system of ``size`` bytes; yield what changes its options."""
    held = folder.with_name(f"{folder.name}-held")
    if folder.is_dir():
        folder.rename(held)
    folder.mkdir()
    _do("mount", "-t", "tmpfs", "-o", f"size={max(size, SMALLEST)}", "tmpfs", str(folder))
    try:
        if held.is_dir():
            shutil.copytree(held, folder, dirs_exist_ok=True)
        yield lambda option: _do("mount", "-o", f"remount,{option}", str(folder))
    finally:
        _do("umount", "--lazy", str(folder))
        shutil.rmtree(held, ignore_errors=True)


def _do(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _size(folder: Path) -> int:
    """Return the bytes of what a folder holds, in whole pages."""
    sizes = (path.stat().st_size for path in folder.rglob("*"))
    return sum(-(-size // SMALLEST) * SMALLEST + SMALLEST for size in sizes)
