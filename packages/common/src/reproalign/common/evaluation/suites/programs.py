"""Running programs that a model wrote: one process each, with limits on time, memory and files.

The limits stop accidents (endless loops, memory, large files), not attacks: a program can still read what its user can
read and reach the network. Run such benchmarks in a container.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress

# Leaving early, by exit() or os._exit(), does not write the token, and so does not count as having passed.
_RUNNER = """
import os, resource, sys
memory, seconds, token = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
resource.setrlimit(resource.RLIMIT_FSIZE, (2**24, 2**24))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
program, answer = sys.stdin.buffer.read().decode(), os.dup(1)
del sys.argv[1:]
sys.stdin = open(os.devnull)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
exec(compile(program, "program", "exec"), {"__name__": "program"})
os.write(answer, token.encode())
"""


def passes(program: str, *, timeout: float, memory: float) -> bool:
    """Say whether ``program`` runs to its end without an error.

    Args:
        program: Python, tests included.
        timeout: seconds.
        memory: GiB of address space.
    """
    token = secrets.token_hex(16)
    limits = [str(int(memory * 2**30)), str(int(timeout) + 1), token]
    with tempfile.TemporaryDirectory(prefix="reproalign-program-") as folder:
        environment = {"PATH": os.environ.get("PATH", ""), "HOME": folder, "TMPDIR": folder, "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(
            [sys.executable, "-I", "-c", _RUNNER, *limits],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env=environment,
            start_new_session=True,
        ) as process:
            try:
                output, _ = process.communicate(program.encode(errors="replace"), timeout=timeout)
            except subprocess.TimeoutExpired:
                return False
            finally:
                _end_session(process.pid)  # children that it left behind too
    return process.returncode == 0 and output == token.encode()


def _end_session(leader: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
