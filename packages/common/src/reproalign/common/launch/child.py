"""The process of a run that another run started: ``python -m reproalign.common.launch.child INVOCATION.json``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from reproalign.common.errors import UserError
from reproalign.common.invocation import Invocation
from reproalign.common.launch.ending import end_on_terminate
from reproalign.common.launch.start import start
from reproalign.common.launch.worker import hand_on


def main(path: str) -> int:
    """Carry out the invocation in ``path``, in several processes if it asks for them; the exit code is a command's."""
    end_on_terminate()
    invocation = Invocation(**json.loads(Path(path).read_text(encoding="utf-8")))
    try:
        return start(invocation, dry_run=False)
    except UserError as error:
        hand_on(error)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
