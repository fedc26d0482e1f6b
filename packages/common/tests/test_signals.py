"""How processes end: by a signal, and those that they forked."""

from __future__ import annotations

import signal
import subprocess
import sys

FORKED = """
import os, signal
os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGTERM))
from reproalign.common.launch.signals import heed_signals
heed_signals()
child = os.fork()
if not child:
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
try:
    os.kill(os.getpid(), signal.SIGTERM)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_a_forked_process_dies_of_sigterm_in_its_first_moment_too():
    """A pool ends its workers as soon as the last result is there, and waits for those that it forked just before."""
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(-signal.SIGTERM), "interrupted"], done.stderr
