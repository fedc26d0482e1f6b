"""One of several processes of a run: ``python -m reproalign.common.launch.worker INVOCATION.json``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from reproalign.common.errors import UserError
from reproalign.common.files import write_text
from reproalign.common.invocation import Invocation, carry_out
from reproalign.common.launch.ending import end_after_leaving, end_on_terminate, leave


def main(path: str) -> int:
    """Carry out the invocation in ``path`` as the rank that the environment names."""
    end_after_leaving()
    end_on_terminate()
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


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
