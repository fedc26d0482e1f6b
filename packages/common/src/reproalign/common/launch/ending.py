"""How one of several processes ends once its work is done."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from functools import cache

_left = False


def end_on_terminate() -> None:
    """Let SIGTERM, by which SLURM and others end a job, end a run as Ctrl-C does: its record says "interrupted".

    Processes forked from this one die of it as ever, from their first moment: a pool of workers is ended by it, and
    waited for.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        _spare_forks()


@cache
def _spare_forks() -> None:
    """Hold SIGTERM back while a process forks: what comes before Python is ready in the child would be forgotten."""
    held = {signal.SIGTERM}

    def hold() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, held)

    def release() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, held)

    def begin() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        release()

    os.register_at_fork(before=hold, after_in_parent=release, after_in_child=begin)


def end_after_leaving() -> None:
    """Let this process end at once after :func:`leave`, when all other exit handlers have run.

    Threads of gloo that outlive its process group can abort a process whose work is done ("terminate called without an
    active exception") when C++ destroys static objects, so that part of the end is skipped. Exit handlers run in the
    reverse of their order of registration: call this before anything registers one that must run, such as a tracker's
    upload.
    """
    atexit.register(_end)


def leave() -> None:
    """Wait for the other processes, and destroy the process group."""
    global _left
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        _left = True


def _end() -> None:
    if _left:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
