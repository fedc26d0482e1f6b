"""How a command ends: an exit code, and one line for what the user can repair."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable

from reproalign.common.console import quiet_libraries
from reproalign.common.errors import (
    Interruption,
    ReportedError,
    UserError,
    interruption_behind,
    shorten_errors_of_threads,
    trouble_of_the_system,
)
from reproalign.common.launch.signals import heed_signals


def guarded(command: str, action: Callable[[], int], *, show_traceback: bool = False) -> int:
    """Call ``action``, which returns an exit code; print a user's mistake on one line."""
    heed_signals()
    quiet_libraries()
    shorten_errors_of_threads()
    try:
        try:
            return action()
        except Exception as error:
            if (interruption := interruption_behind(error)) is not None:
                raise interruption from None
            raise
    except UserError as error:
        if show_traceback:
            traceback.print_exc()
        print(f"{command}: error: {error}", file=sys.stderr)
        return 2
    except ReportedError as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt as error:
        interruption = error if isinstance(error, Interruption) else Interruption()
        print(f"{command}: {interruption}; the same command goes on from there", file=sys.stderr)
        return interruption.exit_code
    except Exception as error:
        trouble = trouble_of_the_system(error)
        if trouble is None or show_traceback:
            raise
        print(f"{command}: error: {trouble} (--traceback shows where)", file=sys.stderr)
        return 2
