"""What a finished run shows: a table of before and after, and pictures."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from reproalign.common.console import result_console
from reproalign.common.evaluation.calibration import calibration
from reproalign.common.evaluation.plots import margin_histogram, reliability_diagram, training_curves
from reproalign.common.evaluation.preferences import preference_metrics
from reproalign.common.records import Run
from reproalign.mmpo.released import released_accuracy

TINY = 1e-5  # margins of a policy that equals its reference, in float32
CURVES = ("loss", "rewards/accuracies", "rewards/margins", "grad_norm")
Floats = NDArray[np.float64]
LABELS = {
    "accuracy": "preference accuracy (reward margin > 0)",
    "likelihood_accuracy": "preference accuracy by likelihood",
    "margin": "mean reward margin",
    "margin_std": "margin standard deviation",
    "ece": "expected calibration error",
    "mce": "maximum calibration error",
    "soft_kl": "KL from the soft targets (nats)",
    "brier": "squared error against the targets",
}


class HeldOutRewards:
    """Rewards of held-out pairs and their target probabilities, as :meth:`PairTrainer.rewards` gives them."""

    def __init__(self, columns: Floats, targets: Floats) -> None:
        self.columns = columns
        self.targets = targets

    @property
    def margins(self) -> Floats:
        """Reward of chosen minus rejected, (pairs,)."""
        return self.columns[:, 0] - self.columns[:, 1]

    def metrics(self, n_bins: int = 10, *, rounded_ties: bool = False) -> dict[str, float]:
        """Return the measures of :func:`preference_metrics`; for a policy also ``likelihood_accuracy``.

        That is the share of pairs whose chosen response has the higher mean log-probability per token. It needs no
        reference, so it says something of a policy that still equals its reference. With ``rounded_ties`` the accuracy
        is :func:`released_accuracy`.
        """
        metrics = preference_metrics(self.columns[:, 0], self.columns[:, 1], self.targets, n_bins=n_bins)
        if rounded_ties:
            metrics["accuracy"] = released_accuracy(self.margins)
        if self.columns.shape[1] == 4:
            metrics["likelihood_accuracy"] = float(np.mean(self.columns[:, 2] > self.columns[:, 3]))
        return metrics


def print_metrics(columns: dict[str, dict[str, float]], pairs: int) -> None:
    """Print metrics, one column per entry."""
    table = Table(f"held-out pairs: {pairs}", *columns, header_style="bold")
    for name, label in LABELS.items():
        if any(name in metrics for metrics in columns.values()):
            table.add_row(label, *(f"{metrics[name]:.4f}" for metrics in columns.values()))
    console = result_console()
    console.print(table)
    if any(metrics["margin_std"] < TINY and abs(metrics["margin"]) < TINY for metrics in columns.values()):
        console.print("A policy that equals its reference has margins of 0, which count as wrong.", style="dim")


def draw(run: Run, evaluations: dict[str, HeldOutRewards], *, n_bins: int = 10, binning: str = "uniform") -> None:
    """Write ``plots/``: reliability diagrams, margins, and training curves if the run has any."""
    folder = run.dir / "plots"
    if evaluations:
        apart = {name: found for name, found in evaluations.items() if np.ptp(found.margins) > TINY} or evaluations
        diagrams = {
            name: calibration(rewards.margins, n_bins=n_bins, binning=binning) for name, rewards in apart.items()
        }
        reliability_diagram(diagrams, folder / "reliability.png")
        margin_histogram(
            {name: rewards.margins.tolist() for name, rewards in evaluations.items()}, folder / "margins.png"
        )
    training_curves(run.rows, folder / "training.png", CURVES)
