"""``accelerate launch`` with its end in one line: ``python -m reproalign.common.launch.launcher WORDS``."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

from reproalign.common.errors import INTERRUPTED
from reproalign.common.launch.signals import ENDING, GRACE, end_with_parent


def main(words: Sequence[str]) -> int:
    """Start the processes that ``words`` ask for, wait for them, and return an exit code for all.

    SIGUSR1 is handed on to them: they end at a safe point. SIGTERM ends them too, and :data:`GRACE` seconds later
    kills them. Once the process that started this one is gone, they are sent SIGTERM.
    """
    for number in ENDING:  # torch takes SIGINT and SIGTERM over when it starts the processes
        signal.signal(number, _hand_on)
    end_with_parent()
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", f"{GRACE:.0f}")
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        launch_command(launch_command_parser().parse_args(list(words)))
    except SignalException as error:
        return INTERRUPTED + int(error.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode in (-signal.SIGUSR1, -signal.SIGTERM):  # it had not begun
            return INTERRUPTED - failure.exitcode
        if failure.exitcode > INTERRUPTED or failure.exitcode == 2:  # it has said why
            return failure.exitcode
        print(f"error: {_what_happened(rank, failure.pid, failure.exitcode)}", file=sys.stderr)
        return 1
    finally:
        for number in ENDING:  # it ends by itself now
            signal.signal(number, signal.SIG_IGN)
    return 0


def _what_happened(rank: int, process: int, code: int) -> str:
    others = "the others were ended; the same command goes on from the newest checkpoint, if there is one"
    if code < 0:
        name = signal.Signals(-code).name
        memory = " (no memory left, mostly)" if -code == signal.SIGKILL else ""
        return f"rank {rank} (process {process}) was killed by {name}{memory}; {others}"
    return f"rank {rank} (process {process}) failed with exit code {code}, its traceback is above; {others}"


def _hand_on(number: int, frame: FrameType | None) -> None:
    import psutil

    told = False
    for child in psutil.Process().children():
        with suppress(psutil.Error):  # it has ended
            if "reproalign.common.launch.worker" in child.cmdline():
                child.send_signal(number)
                told = True
    if not told:
        raise SystemExit(INTERRUPTED + number)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
