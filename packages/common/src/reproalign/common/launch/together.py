"""Several runs that a run starts, one after the other or at the same time, each on GPUs of its own."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reproalign.common.console import has_bars, note, progress
from reproalign.common.errors import ReportedError, UserError, counted
from reproalign.common.launch.children import Child, handed_over, is_finished, note_child, run_child
from reproalign.common.launch.plan import Hardware
from reproalign.common.launch.start import end, open_process
from reproalign.common.records.run import Run

PAUSE = 0.1  # seconds between two looks at the children
GPUS = "CUDA_VISIBLE_DEVICES"


@dataclass
class _Running:
    """A child at work, on the slot whose environment it has."""

    child: Child
    process: subprocess.Popen[bytes]
    error: Path
    slot: dict[str, str]
    files: ExitStack


def run_children(run: Run, children: Sequence[Child], *, at_once: int | None = None) -> list[Path]:
    """Run ``children``, as many at a time as the GPUs hold; finished ones are skipped, interrupted ones resumed.

    A child takes as many GPUs as its ``launch.processes``, and sees no others. What one of several at a time prints
    goes to ``<name>.log`` in the parent's folder. When one fails, those that run are waited for and no other is
    started.

    Args:
        run: the parent's open record, in which every child's status is noted.
        children: with different names.
        at_once: how many at a time; None: as many as the GPUs hold, and one without GPUs.

    Returns:
        Their folders.

    Raises:
        UserError: if ``at_once`` does not fit, or for the mistake that a child found.
        ReportedError: naming the children that failed. What is finished is kept either way.
    """
    free = slots(children, at_once, Hardware.detect(), os.environ.get(GPUS))
    if len(free) == 1:
        return [run_child(run, child, free[0]) for child in children]
    waiting = [child for child in children if not is_finished(run, child)]
    if waiting:
        _Group(run, free).work(waiting)
    return [run.dir / child.name for child in children]


def slots(
    children: Sequence[Child], at_once: int | None, hardware: Hardware, visible: str | None
) -> list[dict[str, str]]:
    """Return what is added to the environment of the children of each place that can be worked in at the same time.

    Args:
        children: ``launch.processes`` of the largest says how many GPUs a place needs.
        at_once: how many places; None: as many as there is room for.
        hardware: of this machine.
        visible: ``CUDA_VISIBLE_DEVICES``, the names of its GPUs; None: they are counted from 0.

    Raises:
        UserError: if there are not so many.
    """
    if not hardware.gpus:
        return [{} for _ in range(at_once or 1)]
    names = (visible.split(",") if visible else [str(number) for number in range(hardware.gpus)])[: hardware.gpus]
    size = max(_processes(child) for child in children)
    room = len(names) // size
    if at_once is not None and at_once > max(room, 1):
        raise UserError(
            f"at_once={at_once} children of {counted(size, 'process')} need {at_once * size} GPUs, and "
            f"{len(names)} are visible"
        )
    if not room:  # the child says what it lacks
        return [{}]
    return [
        {GPUS: ",".join(names[place * size : (place + 1) * size])}
        for place in range(min(at_once or room, len(children)))
    ]


class _Group:
    def __init__(self, run: Run, free: list[dict[str, str]]) -> None:
        self.run = run
        self.free = free
        self.running: list[_Running] = []
        self.failed: dict[str, str] = {}  # name -> the mistake it found, if it was one

    def work(self, waiting: list[Child]) -> None:
        try:
            with progress() as bar:
                task = bar.add_task("running", total=len(waiting))
                while self.running or (waiting and not self.failed):
                    while waiting and self.free and not self.failed:
                        self._open(waiting.pop(0))
                    bar.update(task, description=f"running {', '.join(entry.child.name for entry in self.running)}")
                    bar.advance(task, self._collect())
                    time.sleep(PAUSE)
        except BaseException:
            end(*(entry.process for entry in self.running))
            self._collect()
            raise
        self._report()

    def _open(self, child: Child) -> None:
        slot = self.free.pop(0)
        config: dict[str, Any] = child.invocation.config
        if "launch" in config:
            launch = {**config["launch"], "main_port": 0}  # a free one for each, or they would meet
            child = replace(child, invocation=replace(child.invocation, config={**config, "launch": launch}))
        files = ExitStack()
        command, error = files.enter_context(handed_over(self.run, child))
        path = self.run.dir / f"{child.name}.log"
        log = files.enter_context(path.open("ab"))
        if not has_bars():
            note(f"running {child.name}, see {path}")
        note_child(self.run, child, "running")
        self.running.append(_Running(child, open_process(command, slot, error, log), error, slot, files))

    def _collect(self) -> int:
        """Put down those that have ended; return how many of them are done."""
        ended = [entry for entry in self.running if entry.process.poll() is not None]
        for entry in ended:
            self.running.remove(entry)
            self.free.append(entry.slot)
            if entry.process.returncode:
                self.failed[entry.child.name] = entry.error.read_text("utf-8") if entry.error.is_file() else ""
            entry.files.close()
            note_child(self.run, entry.child)
        return sum(not entry.process.returncode for entry in ended)

    def _report(self) -> None:
        if not self.failed:
            return
        mistakes = [f"{name}: {text}" for name, text in self.failed.items() if text]
        if len(mistakes) == len(self.failed):
            raise UserError(mistakes[0])
        names = ", ".join(self.failed)
        raise ReportedError(f"{names} failed (see NAME.log in {self.run.dir}); the same command goes on from there")


def _processes(child: Child) -> int:
    return int((child.invocation.config.get("launch") or {}).get("processes", 1))
