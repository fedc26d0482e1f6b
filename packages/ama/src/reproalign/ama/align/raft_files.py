"""What ``align raft`` leaves beside the folders of its child runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from reproalign.common.files import csv_text

POOL, SAMPLES = "pool.jsonl", "samples.jsonl"
RECORD_FILE, TRAJECTORY = "reward_record.txt", "trajectory.csv"
COLUMNS = (
    "iteration",
    "mean_reward_of_all",
    "mean_reward_counted",
    "mean_reward",
    "discard_rate",
    "selected",
    "set_aside",
    "train_loss",
    "model",
)


def pool_rows(folder: Path, iterations: int, step: str, name: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file that every iteration wrote: with its number, and ids that are unique among all.

    Args:
        folder: of the parent.
        iterations: how many there are.
        step: whose files.
        name: of the file.
    """
    for number in range(1, iterations + 1):
        with (folder / f"{number}-{step}" / name).open(encoding="utf-8") as stream:
            for line in stream:
                row = json.loads(line)
                yield {**row, "id": f"{number}-{row['id']}", "iteration": number}


def trajectory_text(found: Sequence[Mapping[str, Any]]) -> str:
    """Return iterations as CSV, a line each: rewards, counts, and the folder of the model."""
    return csv_text(COLUMNS, ([entry[name] for name in COLUMNS] for entry in found))
