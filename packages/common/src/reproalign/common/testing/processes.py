"""Commands as a user runs them: in processes of their own, and those that must be refused."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

PATIENCE = 900  # seconds; only a command that hangs takes them, however loaded the machine is


def run_command(command: Sequence[str], timeout: float = PATIENCE) -> subprocess.CompletedProcess[str]:
    """Run ``command`` and return its output; what it started and left behind is ended with it.

    Raises:
        subprocess.TimeoutExpired: after ``timeout`` seconds.
    """
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # workers too, which would keep their port and the processor
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def refusal(
    command: str,
    main: Callable[[Sequence[str]], int],
    words: Sequence[str],
    capsys: pytest.CaptureFixture[str],
    *,
    untouched: Path | None = None,
) -> str:
    """Run a command line that must be refused, and return its one line of error.

    Args:
        command: as typed.
        main: its function.
        words: that follow it.
        capsys: reads what it prints.
        untouched: a folder in which it must write nothing.

    Raises:
        AssertionError: unless it exits with 2, prints one line of error and no traceback, and writes nothing.
    """

    def written() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in untouched.rglob("*")} if untouched else {}

    before = written()
    code = main(words)
    printed = capsys.readouterr().err
    assert code == 2, printed
    (error,) = [line for line in printed.splitlines() if line.startswith(f"{command}: error: ")]
    assert "Traceback" not in printed
    assert written() == before, "something was written"
    return error
