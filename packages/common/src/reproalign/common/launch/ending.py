"""How one of several processes ends once its work is done."""

from __future__ import annotations

import atexit
import os
import sys

_left = False


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
