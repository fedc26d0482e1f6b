"""What a run's folder holds: its record, and whether an invocation may begin or resume there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from reproalign.common.errors import FinishedError, UserError
from reproalign.common.invocation import Invocation
from reproalign.common.manifests import RECORD
from reproalign.common.mappings import flatten
from reproalign.common.records.lineage import ALTERED, check_written, run_folder
from reproalign.common.records.lock import LOCK, check_free, take
from reproalign.common.records.record import now, plain
from reproalign.common.signing import write_signed

CONFIG = "config.yaml"
LOST = "lost"  # the status of a run of which nothing but its configuration is known

# Keys that may change between the first start of a run and its resumption.
VOLATILE = (
    *("resume", "on_bad_checkpoint"),
    *("launch.machine_rank", "launch.main_address", "launch.main_port"),
    *("hub.push", "hub.private"),
)


def check_folder(folder: Path, invocation: Invocation) -> None:
    """Say whether ``invocation`` may begin or resume in ``folder``, before it does; nothing is touched.

    Raises:
        UserError: if the folder is a file, or holds a run that is under way, a finished run, another run, or files that
            are no run's.
    """
    if not (invocation.config.get("launch") or {}).get("machine_rank"):  # on other machines the first one's run is ours
        check_free(folder)
    unfinished_run(folder, invocation)


def unfinished_run(folder: Path, invocation: Invocation) -> dict[str, Any] | None:
    """Return the record of ``invocation``'s run in ``folder``, which is to be resumed; None where it begins.

    Raises:
        UserError: if the folder is a file, or holds a finished run, another run, or files that are no run's.
    """
    record = same_run(folder, invocation)
    if record is None:
        return None
    if record["status"] == "finished":
        raise FinishedError(
            f"output_dir={folder} holds this very run, finished; choose another output_dir to run it again"
        )
    if invocation.config.get("resume") == "never":
        raise UserError(
            f"output_dir={folder} holds this run, unfinished, and resume=never; set resume=auto or another output_dir"
        )
    return record


def same_run(folder: Path, invocation: Invocation) -> dict[str, Any] | None:
    """Return the record of ``invocation``'s run in ``folder``, finished or not.

    Returns:
        None if the folder is new or holds nothing but what a run left that died or failed at its start. Of a run whose
        record was lost a record of the configuration alone.

    Raises:
        UserError: if the folder is a file, holds another run, or files that are no run's.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output_dir={folder} is a file; choose another output_dir")
    if not folder.exists():
        return None
    if not (folder / RECORD).is_file():
        return _without_record(folder, invocation)
    record = read_record(folder)
    differing = config_differences(record["config"], invocation.config)
    if differing or record.get("verb") != invocation.verb:
        if record["status"] == "failed" and _holds_nothing(folder):
            return None
        names = ", ".join(differing[:5]) + (" …" if len(differing) > 5 else "")
        raise UserError(
            f"output_dir={folder} belongs to another run, `{_begins(record['command'])}` (differs in: "
            f"{names or 'verb'}); choose another output_dir"
        )
    return record


def _holds_nothing(folder: Path) -> bool:
    """Say whether a run left nothing but its record, its options and rows that it rejected: it failed at its start."""
    return all(name in (RECORD, CONFIG) or name.startswith("rejects-") for name in _held(folder))


def _held(folder: Path) -> set[str]:
    """Return the names in a run's folder but for the lock and what is half written."""
    return {path.name for path in folder.iterdir() if path.name != LOCK and not _is_temporary(path.name)}


def _without_record(folder: Path, invocation: Invocation) -> dict[str, Any] | None:
    import yaml

    held = _held(folder)
    if not held:
        return None
    try:
        config = yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        config = None
    if not isinstance(config, dict) or config_differences(config, invocation.config):
        raise UserError(f"output_dir={folder} holds files that are not a run's; choose another output_dir")
    if held == {CONFIG}:
        return None
    return {"config": config, "verb": invocation.verb, "status": LOST}


def note_death(folder: Path, error: str) -> None:
    """Let the record of a run whose main process was killed say that it failed, unless another process goes on."""
    if not (folder / RECORD).is_file():
        return
    with suppress(UserError, OSError):
        lock = take(folder)
        try:
            record = read_record(folder)
            if record["status"] == "running":
                write_signed(folder / RECORD, {**record, "status": "failed", "error": error, "ended": now()})
        finally:
            lock.release()


def sweep(folder: Path) -> None:
    """Remove what processes that were killed left half written in a run's folder, whose lock is held.

    Runs that this one started, in folders below, are left to themselves.
    """
    for path in list(_left(folder)):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _left(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        yield from (Path(place, name) for name in (*folders, *files) if _is_temporary(name))
        folders[:] = [name for name in folders if not _is_temporary(name) and not Path(place, name, RECORD).is_file()]


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")


def _begins(command: str) -> str:
    words = command.split(" ")
    return " ".join(words[:3]) + (" …" if len(words) > 3 else "")


def config_differences(left: dict[str, Any], right: dict[str, Any]) -> list[str]:
    """List the keys in which two configurations differ, :data:`VOLATILE` ones aside."""
    first, second = flatten(plain(left)), flatten(plain(right))
    return [
        key for key in sorted(first.keys() | second.keys()) if key not in VOLATILE and first.get(key) != second.get(key)
    ]


def _runs_near(path: Path) -> str:
    """Name the run that a path lies in, or a few that lie in it."""
    above = run_folder(str(path))
    below = sorted(file.parent for pattern in (f"*/{RECORD}", f"*/*/{RECORD}") for file in path.glob(pattern))
    found = [above] if above else below
    return f", such as {', '.join(map(str, found[:3]))}" if found else ""


_KINDS: dict[type, tuple[str, ...]] = {
    str: ("status", "command", "package", "verb", "schema", "target"),
    dict: ("config", "versions", "inputs", "children", "fingerprints", "metrics"),
}


def read_record(path: Path) -> dict[str, Any]:
    """Read the record of a run folder, or a ``run.json`` itself.

    Raises:
        UserError: if there is none, or it is not one.
    """
    file = path / RECORD if path.is_dir() else path
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path}: no run record there ({RECORD} is missing or unreadable); give a run's folder{_runs_near(path)}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not valid JSON ({error}); {ALTERED}") from error
    if isinstance(record, dict):
        check_written(record, file)
    if not isinstance(record, dict) or not {"config", "status", "command"} <= record.keys():
        raise UserError(f"{file}: not a run record (config, status and command are needed)")
    for kind, names in _KINDS.items():
        if odd := [name for name in names if not isinstance(record.get(name, kind()), kind)]:
            raise UserError(f"{file}: not a run record ({odd[0]} is no {kind.__name__}); {ALTERED}")
    return record
