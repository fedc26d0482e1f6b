"""What a finished run shows: a table of before and after, and pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from reproalign.common.evaluation.calibration import calibration
from reproalign.common.evaluation.plots import margin_histogram, reliability_diagram, training_curves
from reproalign.common.evaluation.preferences import preference_metrics
from reproalign.common.training.fit import metric_rows

CURVES = ("loss", "rewards/accuracies", "rewards/margins", "grad_norm")
LABELS = {
    "accuracy": "preference accuracy",
    "margin": "mean reward margin",
    "margin_std": "margin standard deviation",
    "ece": "expected calibration error",
    "mce": "maximum calibration error",
    "soft_kl": "KL from the soft targets (nats)",
    "brier": "squared error against the targets",
}


@dataclass(frozen=True)
class Rewards:
    """Rewards of held-out pairs and their target probabilities, each (pairs,)."""

    chosen: NDArray[np.float64]
    rejected: NDArray[np.float64]
    targets: NDArray[np.float64]

    @property
    def margins(self) -> NDArray[np.float64]:
        """Chosen minus rejected."""
        return self.chosen - self.rejected

    def metrics(self, n_bins: int = 10) -> dict[str, float]:
        """Return :func:`~reproalign.common.evaluation.preferences.preference_metrics`."""
        return preference_metrics(self.chosen, self.rejected, self.targets, n_bins=n_bins)


def print_metrics(columns: dict[str, dict[str, float]], pairs: int) -> None:
    """Print metrics, one column per entry."""
    table = Table(f"held-out pairs: {pairs}", *columns, header_style="bold")
    for name, label in LABELS.items():
        if any(name in metrics for metrics in columns.values()):
            table.add_row(label, *(f"{metrics[name]:.4f}" for metrics in columns.values()))
    Console().print(table)


def draw(run_dir: Path, evaluations: dict[str, Rewards], *, n_bins: int = 10, binning: str = "uniform") -> None:
    """Write ``plots/``: reliability diagrams, margins, and training curves if the run has any."""
    folder = run_dir / "plots"
    if evaluations:
        diagrams = {
            name: calibration(rewards.margins, n_bins=n_bins, binning=binning) for name, rewards in evaluations.items()
        }
        reliability_diagram(diagrams, folder / "reliability.png")
        margin_histogram({name: rewards.margins.tolist() for name, rewards in evaluations.items()}, folder / "margins.png")
    training_curves(metric_rows(run_dir), folder / "training.png", CURVES)
