"""One of several processes of a run: ``python -m reproalign.common.launch.worker INVOCATION.json``."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

from reproalign.common.console import quiet_libraries
from reproalign.common.errors import Interruption, UserError, counted, mistake_in, shorten_errors_of_threads
from reproalign.common.files import write_text
from reproalign.common.invocation import Invocation, carry_out
from reproalign.common.launch.ending import end_after_leaving, leave
from reproalign.common.launch.signals import end_with_parent, heed_signals

ERROR_FILE = "REPROALIGN_ERROR_FILE"  # where a mistake that a process finds is written for the one that started it
INTERRUPTED_FILE = "REPROALIGN_INTERRUPTED_FILE"  # made when a signal ended the run, for a script that requeues it


def main(path: str) -> int:
    """Carry out the invocation in ``path`` as the rank that the environment names; the exit code is a command's."""
    end_after_leaving()
    heed_signals()
    quiet_libraries()
    shorten_errors_of_threads()
    end_with_parent()
    invocation = Invocation(**json.loads(Path(path).read_text(encoding="utf-8")))
    expected, found = invocation.config["launch"]["processes"], int(os.environ.get("WORLD_SIZE", "1"))
    try:
        if found != expected:
            raise UserError(
                f"launch.processes={expected}, but {counted(found, 'process')} were started; look at the launcher's "
                "output"
            )
        carry_out(invocation)
        leave()
    except Interruption as error:
        return _interrupted(error)
    except Exception as error:
        print(f"error: {hand_on(error)}", file=sys.stderr)
        return 2
    return 0


def hand_on(error: Exception) -> str:
    """Tell the process that started this one what the user can repair, and return it; other errors are raised on."""
    mistake = mistake_in(error)
    if mistake is None:
        raise error
    if ERROR_FILE in os.environ:
        write_text(Path(os.environ[ERROR_FILE]), mistake)
    return mistake


def _interrupted(error: Interruption) -> int:
    """Say how far the work came, let the other processes put theirs down, and return the exit code."""
    if os.environ.get("RANK", "0") == "0":
        if INTERRUPTED_FILE in os.environ:
            Path(os.environ[INTERRUPTED_FILE]).touch()
        if error.where:
            print(error, file=sys.stderr)
    if error.where:  # all have come to the same place; else another may be waiting for this one
        with suppress(RuntimeError):
            leave()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(error.exit_code)  # threads of a collective that nobody ends must not keep this process


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
