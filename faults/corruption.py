"""Files that are read again are damaged: those of an interrupted run, of its cache, and of runs that it reads."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from faults.forks import run
from faults.state import differences, state
from faults.trials import FINISHED, Outcome, Scene

HARMS = ("flip", "cut", "zero", "delete")
ZEROED = 64  # bytes at most
OF_PEOPLE = ("events.out.tfevents.*", "README.md")  # to be looked at, or written on: nothing reads or seals them
NEVER_READ = (".said-*", "*.lock", "*.tmp", "plots", "logs")


def corrupt(scene: Scene) -> Outcome:
    """Damage one file and let the case read it: resumed, or anew with the cache and the runs that it is given."""
    case = scene.case
    resumed = scene.rng.random() < 0.5 and any((scene.base.interrupted / case.folder).glob("*"))
    if resumed:
        shutil.rmtree(scene.place, ignore_errors=True)
        shutil.copytree(scene.base.interrupted, scene.place, symlinks=True)
    else:
        scene.lay_out(cache=True)
    target = _target(scene.place, scene.rng)
    if target is None:
        return Outcome("harmless", "nothing to damage")
    what = f"{'resumed' if resumed else 'begun'}: {harm(target, scene.rng)} of {target.relative_to(scene.place)}"
    ended = run(case.words, scene.place)
    told = _names(ended.said, target, scene.place)
    if ended.traceback:
        return Outcome("traceback", what, ended.error)
    if ended.code and not (ended.code == 2 and FINISHED in ended.error):
        return Outcome("named" if told else "unnamed", what, f"exit {ended.code}: {ended.error}")
    differing = differences(scene.base.files, state(scene.place / case.folder))
    if differing:
        return Outcome("differs, said" if told else "SILENT", what, ", ".join(differing))
    return Outcome("healed" if told else "harmless", what, ended.error if told else "")


def corrupt_finished(scene: Scene) -> Outcome:
    """Damage one file of a finished run: `check` and `verify` name it, `show` shows or refuses the run."""
    folder, original = scene.case.folder, scene.base.place / scene.case.folder
    shutil.rmtree(scene.place, ignore_errors=True)
    shutil.copytree(original, scene.place / folder, symlinks=True)
    target = _target(scene.place, scene.rng, OF_PEOPLE)
    if target is None:
        return Outcome("harmless", "nothing to damage")
    what = f"finished: {harm(target, scene.rng)} of {target.relative_to(scene.place)}"
    kept = any(part.startswith("checkpoint-") for part in target.parts)  # which no comparison of two runs reads
    for words in (["check", folder], ["verify", str(original), folder], ["show", folder]):
        ended, verb = run(["reproalign", *words], scene.place), words[0]
        if ended.traceback:
            return Outcome("traceback", what, f"{verb}: {ended.error}")
        told = _names(ended.said + ended.printed, target, scene.place)
        if verb != "show" and not (verb == "verify" and kept) and not (ended.code and told):
            return Outcome("unnamed" if ended.code else "SILENT", what, f"{verb}, exit {ended.code}: {ended.error}")
    return Outcome("named", what)


def harm(path: Path, rng: random.Random) -> str:
    """Damage a file, and say how."""
    data = bytearray(path.read_bytes())
    way = rng.choice(HARMS) if data else "delete"
    if way == "delete":
        path.unlink()
        return way
    at = rng.randrange(len(data))
    if way == "flip":
        bit = rng.randrange(8)
        data[at] ^= 1 << bit
        path.write_bytes(data)
        return f"flip of bit {bit} of byte {at}"
    if way == "cut":
        path.write_bytes(data[:at])
        return f"cut at {at} of {len(data)} bytes"
    count = min(rng.randint(1, ZEROED), len(data) - at)
    data[at : at + count] = bytes(count)
    path.write_bytes(data)
    return f"zeroing of {count} bytes at {at}"


def _target(place: Path, rng: random.Random, spared: Sequence[str] = ()) -> Path | None:
    """Draw a folder of those that hold files, then a file: many small files of one kind are not drawn all the time."""
    folders: dict[Path, list[Path]] = {}
    for top in ("runs", "cache"):
        for path in _files(place / top, (*NEVER_READ, *spared)):
            folders.setdefault(path.parent, []).append(path)
    return rng.choice(folders[rng.choice(sorted(folders))]) if folders else None


def _files(folder: Path, spared: Sequence[str]) -> Iterator[Path]:
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.is_symlink() or any(path.match(pattern) for pattern in spared):
            continue
        if path.is_dir():
            yield from _files(path, spared)
        else:
            yield path


def _names(said: str, target: Path, place: Path) -> bool:
    """Whether a text names a file by its path, or by its name and its folder; the lines of a console may be broken."""
    text = re.sub(r"\s+", "", said)
    return str(target.relative_to(place)) in text or (target.name in text and target.parent.name in text)
