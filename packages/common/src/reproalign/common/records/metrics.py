"""``metrics.jsonl``: what was measured on the way, for readers; no run reads its own to go on."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"
logger = logging.getLogger(__name__)


def metric_rows(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's ``metrics.jsonl``, see :func:`distinct`; what is no row is skipped with a warning."""
    path = folder / METRICS
    if not path.is_file():
        return []
    lines = path.read_bytes().splitlines()
    found = [row for row in map(_row, lines) if row is not None]
    if len(found) < len(lines):
        logger.warning("%s: %d of %d lines are not readable, and skipped", path, len(lines) - len(found), len(lines))
    return distinct(found)


def distinct(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return rows of which, where several have one step and the same keys, the last one counts."""
    return list({(row["step"], tuple(sorted(row))): row for row in rows}.values())


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:  # half a line, or bytes that are no text
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None
