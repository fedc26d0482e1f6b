"""``more-rm plot``: accuracy and calibration by domain of several runs, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich.table import Table

from reproalign.common.command.app import WordParser
from reproalign.common.console import result_console, say
from reproalign.common.errors import UserError
from reproalign.common.evaluation.plots import categories
from reproalign.common.records.folder import read_record
from reproalign.common.records.groups import RecordedRun, group_runs, name_groups

PANELS = {
    "accuracy": "accuracy",
    "ece_10": "ECE (10 bins)",
    "ece_10_calibrated": "ECE (10 bins) if it were calibrated",
}
REQUIRED = ("accuracy", "ece_10")  # of every evaluation; records of earlier versions have no others
METHODS = {"more": "MORE", "multitask": "MultiTask"}
MEAN = "mean"
Measurements = dict[str, dict[str, dict[str, list[float]]]]  # metric -> group of runs -> domain -> value of each run


@dataclass(frozen=True)
class EvaluatedRun(RecordedRun):
    """A run with the metrics of its held-out domains, and ``mean``: domain -> metric -> value."""

    metrics: dict[str, dict[str, float]]


def plot_command(argv: Sequence[str]) -> int:
    """``more-rm plot RUN [RUN …] --output FILE.png``: draw, and print means and standard deviations over seeds."""
    parser = WordParser(
        prog="more-rm plot",
        description="Accuracy and expected calibration error by domain. Runs that differ in seed alone become one "
        "entry: their mean and standard deviation.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a training or evaluation run")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE.png", help="where the figure goes")
    arguments = parser.parse_args(argv)
    if arguments.output.suffix.lower() != ".png":
        raise UserError(f"--output={arguments.output} must end in .png")
    measurements = compare_runs(arguments.runs)
    categories({PANELS[name]: found for name, found in measurements.items()}, arguments.output)
    for name, found in measurements.items():
        result_console().print(comparison_table(found, PANELS[name]))
    say(f"figure: {arguments.output}")
    return 0


def compare_runs(folders: Sequence[Path]) -> Measurements:
    """Read the metrics of PANELS that all runs have from their records, grouped by configuration but for the seed.

    Groups are named by method, else by recipe, else by folder.

    Raises:
        UserError: for a folder without held-out domains, or one given twice.
    """
    evaluations = [evaluated(folder) for folder in folders]
    groups = name_groups(group_runs(evaluations), _method, _recipe)
    return {
        metric: {
            label: {domain: [run.metrics[domain][metric] for run in runs] for domain in _common(runs)}
            for label, runs in groups.items()
        }
        for metric in PANELS
        if all(metric in values for run in evaluations for values in run.metrics.values())
    }


def evaluated(folder: Path) -> EvaluatedRun:
    """Read a run's record and in it the metrics of held-out domains.

    Raises:
        UserError: if there are none, or the folder holds no readable run.
    """
    record = read_record(folder)
    found = record.get("metrics", {})
    try:
        metrics = {
            domain: {name: float(values[name]) for name in PANELS if name in values or name in REQUIRED}
            for domain, values in [*found["domains"].items(), (MEAN, found["mean"])]
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{folder}: no measures of held-out domains; give a run that evaluated some") from error
    return EvaluatedRun(folder if folder.is_dir() else folder.parent, record, metrics)


def comparison_table(groups: Mapping[str, Mapping[str, Sequence[float]]], title: str) -> Table:
    """Show one metric: a row per domain, a column per group of runs, mean ± standard deviation over its runs."""
    table = Table("domain", *groups, title=title, title_justify="left", header_style="bold")
    domains = list(dict.fromkeys(domain for values in groups.values() for domain in values))
    for domain in [*(domain for domain in domains if domain != MEAN), MEAN]:
        table.add_row(domain, *(_spread(values.get(domain, [])) for values in groups.values()))
    return table


def _spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{fmean(values):.4f}" + (f" ± {stdev(values):.4f}" if len(values) > 1 else "")


def _common(runs: Sequence[EvaluatedRun]) -> list[str]:
    return [domain for domain in runs[0].metrics if all(domain in run.metrics for run in runs)]


def _method(record: dict[str, Any]) -> str | None:
    return METHODS.get(record["config"].get("method", ""))


def _recipe(record: dict[str, Any]) -> str | None:
    return record.get("recipe")
