"""What a run's folder holds: its record, and whether an invocation may begin or resume there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from reproalign.common.errors import UserError
from reproalign.common.invocation import Invocation
from reproalign.common.mappings import flatten
from reproalign.common.records.lineage import ALTERED, RECORD, check_written
from reproalign.common.records.record import plain

# Keys that may change between the first start of a run and its resumption.
VOLATILE = (
    *("resume", "on_bad_checkpoint"),
    *("launch.machine_rank", "launch.main_address", "launch.main_port"),
    *("hub.push", "hub.private"),
)


def check_folder(folder: Path, invocation: Invocation) -> dict[str, Any] | None:
    """Say whether ``invocation`` may write into ``folder``.

    Returns:
        The record of the same, unfinished run, which is to be resumed; None if the folder is new or empty.

    Raises:
        UserError: if the folder is a file, holds a finished run, another run, or files that are no run's.
    """
    record = same_run(folder, invocation)
    if record is None:
        return None
    if record["status"] == "finished":
        raise UserError(f"output_dir={folder} holds this very run, finished; choose another output_dir to run it again")
    if invocation.config.get("resume") == "never":
        raise UserError(
            f"output_dir={folder} holds this run, unfinished, and resume=never; set resume=auto or another output_dir"
        )
    return record


def same_run(folder: Path, invocation: Invocation) -> dict[str, Any] | None:
    """Return the record of ``invocation``'s run in ``folder``, finished or not; None if the folder is new or empty.

    Raises:
        UserError: if the folder is a file, holds another run, or files that are no run's.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output_dir={folder} is a file; choose another output_dir")
    if not folder.exists() or not any(folder.iterdir()):
        return None
    if not (folder / RECORD).is_file():
        raise UserError(f"output_dir={folder} holds files that are not a run's; choose another output_dir")
    record = read_record(folder)
    differing = config_differences(record["config"], invocation.config)
    if differing or record.get("verb") != invocation.verb:
        names = ", ".join(differing[:5]) + (" …" if len(differing) > 5 else "")
        raise UserError(
            f"output_dir={folder} belongs to another run, `{_begins(record['command'])}` (differs in: "
            f"{names or 'verb'}); choose another output_dir"
        )
    return record


def _begins(command: str) -> str:
    words = command.split(" ")
    return " ".join(words[:3]) + (" …" if len(words) > 3 else "")


def config_differences(left: dict[str, Any], right: dict[str, Any]) -> list[str]:
    """List the keys in which two configurations differ, :data:`VOLATILE` ones aside."""
    first, second = flatten(plain(left)), flatten(plain(right))
    return [
        key for key in sorted(first.keys() | second.keys()) if key not in VOLATILE and first.get(key) != second.get(key)
    ]


def read_record(path: Path) -> dict[str, Any]:
    """Read the record of a run folder, or a ``run.json`` itself.

    Raises:
        UserError: if there is none, or it is not one.
    """
    file = path / RECORD if path.is_dir() else path
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: no run record there ({RECORD} is missing or unreadable)") from error
    except ValueError as error:
        raise UserError(f"{file}: not valid JSON ({error}); {ALTERED}") from error
    if isinstance(record, dict):
        check_written(record, file)
    if not isinstance(record, dict) or not {"config", "status", "command"} <= record.keys():
        raise UserError(f"{file}: not a run record (config, status and command are needed)")
    return record
