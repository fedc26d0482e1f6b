"""How far a run is: its iterations, and the phase that it is in, each with the time that is left."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from reproalign.common.console import note, progress, time_left


class Bars:
    """Two bars on the main process, none on the others; in a file a line per iteration.

    Args:
        done: iterations before this run, or before it was resumed.
        total: iterations in all.
        shown: whether this is the main process.
    """

    def __init__(self, done: int, total: int, *, shown: bool) -> None:
        self._shown = shown
        self._progress = progress(shown=shown)
        self._all = self._progress.add_task("iterations", completed=done, total=total)
        self._phase = self._progress.add_task("loading", total=None)

    def phase(self, name: str, total: int) -> Callable[[int], None]:
        """Begin a phase of ``total`` steps; return what its steps are told to."""
        self._progress.reset(self._phase, description=name, total=total)
        return lambda steps: self._progress.advance(self._phase, steps)

    def iteration_done(self, numbers: str) -> None:
        """Count an iteration, and show its ``numbers``."""
        self._progress.advance(self._all)
        self._progress.update(self._all, description=f"iterations ({numbers})")
        task = self._progress.tasks[self._all]
        if self._shown and self._progress.disable:
            note(f"iteration {task.completed:.0f} of {task.total:.0f}: {numbers}{time_left(task)}")

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
