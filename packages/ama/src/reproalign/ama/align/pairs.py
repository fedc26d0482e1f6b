"""What DPO and the reward model share: what is drawn of a training, and the report of held-out pairs."""

from __future__ import annotations

from datasets import Dataset
from rich.table import Table

from reproalign.common.console import result_console, say
from reproalign.common.evaluation.plots import training_curves
from reproalign.common.evaluation.preferences import preference_metrics
from reproalign.common.records import Run
from reproalign.common.training.pairs import ScoredPairsTrainer

CURVES = ("loss", "rewards/accuracies", "rewards/margins", "grad_norm")


def report(run: Run, trainer: ScoredPairsTrainer, held_out: Dataset | None) -> None:
    """Measure held-out pairs, record and print loss, accuracy and margin, and draw the training; all processes."""
    metrics: dict[str, float] = {}
    if held_out is not None:
        metrics["eval_loss"] = float(trainer.evaluate()["eval_loss"])
        columns, targets = trainer.rewards(held_out)
        measured = preference_metrics(columns[:, 0], columns[:, 1], targets)
        metrics |= {f"eval_{name}": measured[name] for name in ("accuracy", "margin", "margin_std")}
    if not run.is_main:
        return
    if held_out is not None:
        run.set_metrics(metrics)
        table = Table(f"held-out pairs: {len(held_out)}", "", header_style="bold")
        for name, value in metrics.items():
            table.add_row(name.removeprefix("eval_").replace("_", " "), f"{value:.4f}")
        result_console().print(table)
    training_curves(run.rows, run.dir / "plots" / "training.png", CURVES)
    say(f"model, record and plots: {run.dir}")
