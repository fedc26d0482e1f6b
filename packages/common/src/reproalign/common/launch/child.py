"""The process of a run that another run started: ``python -m reproalign.common.launch.child INVOCATION.json``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from reproalign.common.console import quiet_libraries
from reproalign.common.errors import FinishedError, Interruption, ReportedError, shorten_errors_of_threads
from reproalign.common.invocation import Invocation
from reproalign.common.launch.signals import end_with_parent, heed_signals
from reproalign.common.launch.start import start
from reproalign.common.launch.worker import hand_on


def main(path: str) -> int:
    """Carry out the invocation in ``path``, in several processes if it asks for them; the exit code is a command's."""
    heed_signals()
    quiet_libraries()
    shorten_errors_of_threads()
    end_with_parent()
    invocation = Invocation(**json.loads(Path(path).read_text(encoding="utf-8")))
    try:
        return start(invocation, dry_run=False)
    except FinishedError:  # its parent was killed and started again meanwhile
        print(f"{invocation.config['output_dir']}: finished by an earlier process, kept", file=sys.stderr)
        return 0
    except Interruption as error:
        if error.where:
            print(error, file=sys.stderr)
        return error.exit_code
    except ReportedError as error:
        print(error, file=sys.stderr)
        return 1
    except Exception as error:
        hand_on(error)
        return 2


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
