"""Runs that are compared with each other: read, put together where they differ in seed alone, and named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from reproalign.common.errors import UserError
from reproalign.common.records.folder import config_differences

REPLICATE = ("seed", "output_dir")  # keys in which runs of one group may differ


@dataclass(frozen=True)
class RecordedRun:
    """A run's folder and its record."""

    folder: Path
    record: dict[str, Any]


Recorded = TypeVar("Recorded", bound=RecordedRun)


def group_runs(runs: Sequence[Recorded]) -> list[list[Recorded]]:
    """Put runs together whose configurations differ in REPLICATE alone.

    Raises:
        UserError: if one run is given twice.
    """
    seen: set[Path] = set()
    groups: list[list[Recorded]] = []
    for run in runs:
        if run.folder.resolve() in seen:
            raise UserError(f"{run.folder}: one run is given twice; name each once")
        seen.add(run.folder.resolve())
        for others in groups:
            keys = config_differences(others[0].record["config"], run.record["config"])
            if all(key in REPLICATE for key in keys):
                others.append(run)
                break
        else:
            groups.append([run])
    return groups


def name_groups(
    groups: Sequence[list[Recorded]], *labels: Callable[[dict[str, Any]], str | None]
) -> dict[str, list[Recorded]]:
    """Label groups by the first of ``labels`` that tells them apart, read from the record of each group's first run.

    The last part of that run's folder, and all of it, are tried thereafter.

    Raises:
        UserError: if two groups begin with one run.
    """
    folders = [entry[0].folder.resolve() for entry in groups]
    candidates: list[list[str | None]] = [[label(entry[0].record) for entry in groups] for label in labels]
    candidates += [[folder.name for folder in folders], [str(folder) for folder in folders]]
    for names in candidates:
        if all(names) and len(set(names)) == len(groups):
            return {
                f"{name} ({len(entry)} runs)" if len(entry) > 1 else str(name): entry
                for name, entry in zip(names, groups, strict=True)
            }
    raise UserError("one run is given twice; name each once")
