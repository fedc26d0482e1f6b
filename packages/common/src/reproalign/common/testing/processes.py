"""Commands that start processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence

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
