"""What a run shows: a table of before and after, and the paper's curves."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from reproalign.common.evaluation.plots import training_curves
from reproalign.common.training.fit import FINAL, metric_rows

LABELS = {
    "rewards/accuracies": "reward accuracy (chosen > rejected)",
    "rewards/margins": "mean reward margin",
    "kl/chosen": "sequential KL of chosen (nats)",
    "kl/rejected": "sequential KL of rejected (nats)",
    "risk_ratio/chosen": "sequential risk ratio of chosen (nats)",
    "risk_ratio/rejected": "sequential risk ratio of rejected (nats)",
    "logps/chosen": "log-probability of chosen (nats)",
    "logps/rejected": "log-probability of rejected (nats)",
}
CURVES = ("loss", "rewards/accuracies", "rewards/margins", "kl/chosen", "kl/rejected", "kl", "auc")


def print_metrics(columns: dict[str, dict[str, float]], pairs: int) -> None:
    """Print metrics of held-out pairs, one column per entry."""
    table = Table(f"held-out pairs: {pairs}", *columns, header_style="bold")
    for name, label in LABELS.items():
        if any(name in metrics for metrics in columns.values()):
            table.add_row(label, *(f"{metrics[name]:.4f}" if name in metrics else "" for metrics in columns.values()))
    Console().print(table)


def measured_before(run_dir: Path) -> dict[str, float]:
    """Return what an interrupted run logged of the held-out pairs before its first step; {} if nothing."""
    rows = [row for row in metric_rows(run_dir) if row["step"] == 0]
    return {name.removeprefix("eval_"): row[name] for row in rows for name in row if name.startswith("eval_")}


def draw(run_dir: Path) -> None:
    """Write ``plots/training.png``."""
    training_curves(metric_rows(run_dir), run_dir / "plots" / "training.png", CURVES)


def model_label(name: str) -> str:
    """Name a model after its Hub id or folder; of a run's ``model`` folder after the run."""
    path = Path(name)
    return path.parent.name if path.name == FINAL and path.parent.name else path.name or name
