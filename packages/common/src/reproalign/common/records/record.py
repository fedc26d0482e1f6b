"""A run's record as plain values: how it begins, and what it was made by."""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from reproalign.common.invocation import Invocation
from reproalign.common.records.environment import git_state, hardware, package_versions
from reproalign.common.records.lineage import input_runs

FORMAT = 2  # 1 was not signed


def new_record(invocation: Invocation) -> dict[str, Any]:
    """Return the record of a run that begins: what was asked for, of which code, on which machine."""
    package_file = importlib.import_module(invocation.package).__file__ if _is_regular(invocation.package) else None
    return {
        "format": FORMAT,
        "status": "running",
        "command": shlex.join(invocation.command),
        "package": invocation.package,
        "verb": invocation.verb,
        "schema": invocation.schema,
        "target": invocation.target,
        "recipe": invocation.recipe,
        "config": invocation.config,
        "seed": invocation.config.get("seed"),
        "preview": invocation.preview,
        "processes": int(os.environ.get("WORLD_SIZE", "1")),
        "strategy": (invocation.config.get("launch") or {}).get("strategy", "single"),
        "versions": package_versions(invocation.package),
        "git": git_state(Path(package_file or __file__)),
        "hardware": hardware(),
        "inputs": {  # the run that started this one is its parent: its record goes on changing
            key: entry for key, entry in input_runs(invocation.config).items() if entry["run"] != invocation.parent
        },
        "parent": invocation.parent,
        "children": {},
        "fingerprints": {},
        "metrics": {},
        "started": now(),
        "ended": None,
        "wall_seconds": None,
        "peak_memory": None,
        "resumptions": 0,
    }


def recorded_invocation(record: Mapping[str, Any]) -> Invocation:
    """Return the invocation that a record was made by."""
    return Invocation(
        command=shlex.split(record["command"]),
        package=record["package"],
        verb=record["verb"],
        schema=record["schema"],
        target=record["target"],
        config=record["config"],
        recipe=record.get("recipe"),
    )


def _is_regular(package: str) -> bool:
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def now() -> str:
    """Return the time as a record has it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def plain(value: Any) -> Any:
    """Copy of ``value`` that strict JSON can carry."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
