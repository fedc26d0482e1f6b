"""``radpo plot``: the paper's figure, from the metrics that runs recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from reproalign.common.cli import WordParser
from reproalign.common.errors import UserError
from reproalign.common.evaluation.plots import Curve, comparison, mean_curve
from reproalign.common.records.groups import RecordedRun, group_runs, name_groups
from reproalign.common.records.run import read_record
from reproalign.common.training.fit import metric_rows
from reproalign.radpo.report import LABELS

PANELS = ("kl/chosen", "kl/rejected", "rewards/accuracies")
Points = dict[int, dict[str, float]]  # optimiser step -> metrics of the held-out pairs


@dataclass(frozen=True)
class Measured(RecordedRun):
    """A run and its evaluations."""

    points: Points


def plot_command(argv: Sequence[str]) -> int:
    """``radpo plot RUN [RUN …] --output FILE.png [--group]``: draw, and print the last values."""
    parser = WordParser(prog="radpo plot", description="Sequential KL and reward accuracy of several runs over steps.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a training run")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE.png", help="where the figure goes")
    parser.add_argument(
        "--group", action="store_true", help="one line for runs that differ in seed alone: their mean, and their range"
    )
    arguments = parser.parse_args(argv)
    if arguments.output.suffix.lower() != ".png":
        raise UserError(f"--output={arguments.output} must end in .png")
    runs = [measured(folder) for folder in arguments.runs]
    groups = group_runs(runs) if arguments.group else [[run] for run in runs]
    named = name_groups(groups, _recipe)
    curves = {
        LABELS[name]: {label: curve for label, entry in named.items() if (curve := _curve(entry, name))}
        for name in PANELS
    }
    comparison({title: lines for title, lines in curves.items() if lines}, arguments.output)
    _print_last(curves)
    Console().print(f"figure: {arguments.output}", highlight=False)
    return 0


def measured(folder: Path) -> Measured:
    """Read the evaluations of a run: before training (step 0), during it, and after it (at the last step).

    Raises:
        UserError: if there is none, or the folder holds no readable run.
    """
    record = read_record(folder)
    folder = folder if folder.is_dir() else folder.parent
    try:
        rows = metric_rows(folder)
        points: Points = {row["step"]: {} for row in rows if any(key.startswith("eval_") for key in row)}
        for row in rows:
            for key, value in row.items():
                if key.startswith("eval_"):
                    points[row["step"]][key.removeprefix("eval_")] = value
        last = max((row["step"] for row in rows), default=0)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / 'metrics.jsonl'}: not a run's metrics ({error}); give another run") from error
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
    return Measured(folder, record, points)


def _recipe(record: dict[str, Any]) -> str | None:
    return record.get("recipe")


def _curve(runs: Sequence[Measured], name: str) -> Curve | None:
    values = [{step: metrics[name] for step, metrics in run.points.items() if name in metrics} for run in runs]
    if not all(values):
        return None
    curve = mean_curve(values)
    if not curve.steps:
        folders = ", ".join(str(run.folder) for run in runs)
        raise UserError(f"{folders}: no step at which all of these were evaluated; leave --group out")
    return curve


def _print_last(curves: Mapping[str, Mapping[str, Curve]]) -> None:
    table = Table("run", "step", *curves, header_style="bold")
    for label in dict.fromkeys(label for lines in curves.values() for label in lines):
        own = [lines.get(label) for lines in curves.values()]
        steps = [str(curve.steps[-1]) for curve in own if curve]
        table.add_row(label, steps[0], *(_last(curve) for curve in own))
    Console().print(table)


def _last(curve: Curve | None) -> str:
    if curve is None:
        return ""
    mean, low, high = curve.means[-1], curve.lows[-1], curve.highs[-1]
    return f"{mean:.4f}" if low == high else f"{mean:.4f} ({low:.4f} to {high:.4f})"
