"""``radpo plot``: the paper's figures, from the metrics that runs recorded."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from reproalign.common.command.app import WordParser
from reproalign.common.console import result_console, say
from reproalign.common.errors import UserError
from reproalign.common.evaluation.plots import MeanCurve, comparison, mean_curve
from reproalign.common.records.groups import group_runs, name_groups
from reproalign.radpo.published import MODELS
from reproalign.radpo.report import LABELS, PANELS, MeasuredRun, measured
from reproalign.radpo.sweep import against_alpha

AXES = {
    "steps": "optimiser step",
    "examples": "examples, of all processes",
    "examples-per-process": "examples per process",
}


def plot_command(argv: Sequence[str]) -> int:
    """``radpo plot RUN [RUN …] --output FILE.png [--group] …``: draw, and print the last values."""
    arguments = _parse(argv)
    runs = [measured(folder) for folder in arguments.runs]
    if arguments.against:
        curves, across = against_alpha(runs, PANELS, arguments.published), "alpha"
    else:
        groups = group_runs(runs) if arguments.group else [[run] for run in runs]
        named = name_groups(groups, _recipe)
        curves = {
            LABELS[name]: {label: curve for label, entry in named.items() if (curve := _curve(entry, name, arguments))}
            for name in PANELS
        }
        across = AXES[arguments.across]
    curves = {title: lines for title, lines in curves.items() if lines}
    comparison(curves, arguments.output, across=across, smooth=arguments.smooth)
    _print_last(curves, "alpha" if arguments.against else "step" if arguments.across == "steps" else "examples")
    say(f"figure: {arguments.output}")
    return 0


def _parse(argv: Sequence[str]) -> Namespace:
    parser = WordParser(prog="radpo plot", description="Sequential KL and reward accuracy of several runs.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a training run")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE.png", help="where the figure goes")
    parser.add_argument(
        "--group", action="store_true", help="one line for runs that differ in seed alone: mean and standard deviation"
    )
    parser.add_argument(
        "--across", choices=AXES, default="steps", help="what the curves are drawn over (default: steps)"
    )
    parser.add_argument(
        "--smooth", type=float, default=0.0, metavar="W", help="weight of a moving average, 0 <= W < 1; as W&B draws it"
    )
    parser.add_argument(
        "--against",
        choices=["alpha"],
        help="draw means over the second half of the runs against alpha, one line per measure and mu",
    )
    parser.add_argument(
        "--published", choices=MODELS, metavar="MODEL", help=f"with --against: the paper's values beside, {MODELS}"
    )
    arguments = parser.parse_args(argv)
    if arguments.output.suffix.lower() != ".png":
        raise UserError(f"--output={arguments.output} must end in .png")
    if not 0 <= arguments.smooth < 1:
        raise UserError(f"--smooth={arguments.smooth} must be in [0, 1)")
    if arguments.published and not arguments.against:
        raise UserError("--published goes with --against alpha: the paper's curves themselves are not known")
    if arguments.against and (arguments.smooth or arguments.group or arguments.across != "steps"):
        raise UserError("--against alpha has no curves over steps; leave --smooth, --group and --across out")
    return arguments


def _recipe(record: dict[str, Any]) -> str | None:
    return record.get("recipe")


def _curve(runs: Sequence[MeasuredRun], name: str, arguments: Namespace) -> MeanCurve | None:
    values = [
        {step * _unit(run, arguments.across): metrics[name] for step, metrics in run.points.items() if name in metrics}
        for run in runs
    ]
    if not all(values):
        return None
    curve = mean_curve(values)
    if not curve.steps:
        folders = ", ".join(str(run.folder) for run in runs)
        raise UserError(f"{folders}: no step at which all of these were evaluated; leave --group out")
    return curve


def _unit(run: MeasuredRun, across: str) -> int:
    """Return what one optimiser step is on the axis ``across``."""
    if across == "steps":
        return 1
    trainer = run.record["config"].get("trainer", {})
    per_process = int(trainer.get("per_device_train_batch_size", 8)) * int(
        trainer.get("gradient_accumulation_steps", 1)
    )
    return per_process * (int(run.record.get("processes", 1)) if across == "examples" else 1)


def _print_last(curves: Mapping[str, Mapping[str, MeanCurve]], across: str) -> None:
    table = Table("run", across, *curves, header_style="bold")
    for label in dict.fromkeys(label for lines in curves.values() for label in lines):
        own = [lines.get(label) for lines in curves.values()]
        first = next(curve for curve in own if curve)
        places = range(len(first.steps)) if across == "alpha" else [-1]
        for place in places:
            table.add_row(label, f"{first.steps[place]:g}", *(_value(curve, place) for curve in own))
    result_console().print(table)


def _value(curve: MeanCurve | None, place: int) -> str:
    if curve is None or place >= len(curve.steps):
        return ""
    mean, spread = curve.means[place], curve.highs[place] - curve.means[place]
    return f"{mean:.4f}" if not spread else f"{mean:.4f} ± {spread:.4f}"
