"""One of several processes of a run: ``python -m reproalign.common.launch.worker INVOCATION.json``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from reproalign.common.errors import UserError
from reproalign.common.files import write_text
from reproalign.common.invocation import Invocation, carry_out


def main(path: str) -> int:
    """Carry out the invocation in ``path`` as the rank that the environment names."""
    invocation = Invocation(**json.loads(Path(path).read_text(encoding="utf-8")))
    expected, found = invocation.config["launch"]["processes"], int(os.environ.get("WORLD_SIZE", "1"))
    try:
        if found != expected:
            raise UserError(
                f"launch.processes={expected}, but {found} process(es) were started; look at the launcher's output"
            )
        carry_out(invocation)
        leave()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        hand_on(error)
        return 2
    return 0


def hand_on(error: UserError) -> None:
    """Tell the process that started this one what the user's mistake was."""
    if "REPROALIGN_ERROR_FILE" in os.environ:
        write_text(Path(os.environ["REPROALIGN_ERROR_FILE"]), str(error))


def leave() -> None:
    """Part from the other processes in good order: background threads of the connection that are alive when Python ends
    can abort a process whose work is done.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
