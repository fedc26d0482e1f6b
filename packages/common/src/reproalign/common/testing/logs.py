"""What a run logged."""

from __future__ import annotations

import json
from pathlib import Path


def logged(folder: Path, name: str = "loss") -> list[float]:
    """Return the values of a metric in a run's ``metrics.jsonl``, line by line; lines without it are left out."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row[name] for row in rows if name in row]
