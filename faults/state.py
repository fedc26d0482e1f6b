"""What must be equal between an undisturbed run and a disturbed one: everything that it wrote but times and places."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from reproalign.common.files import sha256_file, sha256_json

RECORD = "run.json"
OF_RECORD = ("status", "metrics", "training", "fingerprints", "merges", "rows")
OF_TIME = ("_runtime", "_per_second", "seconds", "started", "ended", "peak_memory", "written", "created", "_at")
LEFT_KEYS = ("base_model_name_or_path", "seconds_")
# What depends on how often a run began, on the clock, or is a summary of what is compared by itself.
LEFT_OUT = (
    "checkpoint-*",
    "iteration-*",
    "events.out.tfevents.*",
    "*.tmp",
    "README.md",
    "*manifest.json",
    "training_args.bin",
    "index.html",
    "*.svg",
    ".*",
)


def state(run: Path) -> dict[str, str]:
    """Return a fingerprint of each file of a run, below its folder."""
    found = {}
    for path in _files(run):
        name = str(path.relative_to(run))
        found[name] = _fingerprint(path)
    return found


def differences(expected: dict[str, str], found: dict[str, str]) -> list[str]:
    """Return the files that differ, are missing or too many."""
    return sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))


def _files(run: Path) -> Iterator[Path]:
    for path in sorted(run.iterdir()) if run.is_dir() else []:
        if any(path.match(pattern) for pattern in LEFT_OUT):
            continue
        if path.is_dir():
            yield from _files(path)
        else:
            yield path


def _fingerprint(path: Path) -> str:
    try:
        if path.name == RECORD:
            record = json.loads(path.read_text(encoding="utf-8"))
            return sha256_json(_timeless({key: record.get(key) for key in OF_RECORD}))
        if path.suffix == ".json":
            return sha256_json(_timeless(json.loads(path.read_text(encoding="utf-8"))))
        if path.suffix == ".jsonl":
            lines = path.read_text(encoding="utf-8").splitlines()
            return sha256_json([_timeless(json.loads(line)) for line in lines])
    except ValueError:
        return f"not readable: {sha256_file(path)}"
    return sha256_file(path)


def _timeless(value: Any) -> Any:
    """Leave out times and places; PEFT writes the names of its modules in no order."""
    if isinstance(value, dict):
        kept = {key: entry for key, entry in value.items() if not (key.endswith(OF_TIME) or key.startswith(LEFT_KEYS))}
        return {
            key: sorted(entry) if key == "target_modules" and isinstance(entry, list) else _timeless(entry)
            for key, entry in kept.items()
        }
    return [_timeless(entry) for entry in value] if isinstance(value, list) else value
