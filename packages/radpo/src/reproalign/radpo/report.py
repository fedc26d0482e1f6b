"""What a run shows: a table of before and after, and the paper's curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.table import Table

from reproalign.common.console import result_console
from reproalign.common.errors import UserError
from reproalign.common.evaluation.plots import training_curves
from reproalign.common.records import Run
from reproalign.common.records.folder import read_record
from reproalign.common.records.groups import RecordedRun
from reproalign.common.records.metrics import metric_rows

Points = dict[int, dict[str, float]]  # optimiser step -> metrics of the held-out pairs

LABELS = {
    "rewards/accuracies": "reward accuracy (chosen > rejected)",
    "rewards/accuracies_with_term": "accuracy of β (u + T), as in the paper",
    "rewards/margins": "mean reward margin",
    "kl/chosen": "sequential KL of chosen (nats)",
    "kl/rejected": "sequential KL of rejected (nats)",
    "risk_ratio/chosen": "sequential risk ratio of chosen (nats)",
    "risk_ratio/rejected": "sequential risk ratio of rejected (nats)",
    "logps/chosen": "log-probability of chosen (nats)",
    "logps/rejected": "log-probability of rejected (nats)",
}
PANELS = ("kl/chosen", "kl/rejected", "rewards/accuracies", "rewards/accuracies_with_term")
CURVES = (
    "loss",
    "rewards/accuracies",
    "rewards/accuracies_with_term",
    "rewards/margins",
    "kl/chosen",
    "kl/rejected",
    "kl",
    "auc",
)


@dataclass(frozen=True)
class MeasuredRun(RecordedRun):
    """A run and its evaluations."""

    points: Points


def print_metrics(columns: dict[str, dict[str, float]], pairs: int) -> None:
    """Print metrics of held-out pairs, one column per entry."""
    table = Table(f"held-out pairs: {pairs}", *columns, header_style="bold")
    for name, label in LABELS.items():
        if any(name in metrics for metrics in columns.values()):
            table.add_row(label, *(f"{metrics[name]:.4f}" if name in metrics else "" for metrics in columns.values()))
    result_console().print(table)


def evaluations(rows: Sequence[dict[str, Any]]) -> Points:
    """Return what rows of ``metrics.jsonl`` say of the held-out pairs, by optimiser step."""
    points: Points = {}
    for row in rows:
        found = {name.removeprefix("eval_"): value for name, value in row.items() if name.startswith("eval_")}
        if found:
            points.setdefault(row["step"], {}).update(found)
    return points


def measured(folder: Path) -> MeasuredRun:
    """Read the evaluations of a run: before training (step 0), during it, and after it (at the last step).

    Raises:
        UserError: if there is none, or the folder holds no readable run.
    """
    record = read_record(folder)
    folder = folder if folder.is_dir() else folder.parent
    rows = metric_rows(folder)
    points = evaluations(rows)
    last = max((row["step"] for row in rows), default=0)
    whole = record.get("metrics", {})
    for step, name in ((0, "before"), (last, "after")):
        if isinstance(whole.get(name), dict):
            points[step] = whole[name]
    points = {
        step: {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        for step, metrics in sorted(points.items())
    }
    if not any(name in metrics for metrics in points.values() for name in PANELS):
        raise UserError(f"{folder}: the run has no evaluation of held-out pairs; give runs with trainer.eval_strategy")
    return MeasuredRun(folder, record, points)


def second_half(points: Points) -> dict[str, float]:
    """Return each metric's mean over the evaluations of the second half of the run, as the paper's sweeps have it.

    The half begins at half of the last step that was evaluated; {} if there are fewer than two evaluations in it.
    """
    half = [metrics for step, metrics in points.items() if 2 * step >= max(points)]
    if len(half) < 2:
        return {}
    return {name: fmean(metrics[name] for metrics in half) for name in half[-1] if all(name in m for m in half)}


def draw(run: Run) -> None:
    """Write ``plots/training.png``."""
    training_curves(run.rows, run.dir / "plots" / "training.png", CURVES)
