"""What the runs of a sweep found: mean and spread over seeds as table, CSV, JSON and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.table import Column, Table

from reproalign.common.console import result_console
from reproalign.common.evaluation.spread import METHOD, Spread, paired_differences, spread
from reproalign.common.files import csv_text, write_json, write_text
from reproalign.common.mappings import flatten
from reproalign.common.records import Run
from reproalign.common.records.compare import TIMING

PANELS = 6  # of a picture
_AXES = ("step", "epoch", "learning_rate")


@dataclass(frozen=True)
class SweptRun:
    """A finished run of a sweep: what was swept, its folder and its record."""

    setting: dict[str, Any]
    seed: int | None
    folder: Path
    record: dict[str, Any]

    @property
    def label(self) -> str:
        """The setting in one line."""
        return ", ".join(f"{key}={value}" for key, value in self.setting.items())

    @property
    def metrics(self) -> dict[str, float]:
        """Final metrics that are numbers, those of the machine left out."""
        return _numbers(flatten(self.record["metrics"]))


Spreads = dict[str, dict[str, Spread]]


def report(run: Run, results: Sequence[SweptRun]) -> None:
    """Write ``results.json``, ``results.csv`` and ``plots/``, record the means and print the table."""
    groups: dict[str, list[SweptRun]] = {}
    for result in results:
        groups.setdefault(result.label, []).append(result)
    found: Spreads = {}
    for label, entries in groups.items():
        shared = [name for name in entries[0].metrics if all(name in entry.metrics for entry in entries)]
        found[label] = {name: spread([entry.metrics[name] for entry in entries]) for name in shared}
    differences = _differences(groups)
    told = {label: {name: asdict(entry) for name, entry in part.items()} for label, part in found.items()}
    seeds = {label: [entry.seed for entry in entries] for label, entries in groups.items()}
    compared = {label: {name: asdict(entry) for name, entry in part.items()} for label, part in differences.items()}
    content = {"interval": METHOD, "seeds": seeds, "settings": told, "differences": compared}
    write_json(run.dir / "results.json", content)
    write_text(run.dir / "results.csv", _csv(found, seeds))
    means = {label: {name: entry.mean for name, entry in part.items()} for label, part in found.items()}
    run.set_metrics(means if len(means) > 1 else next(iter(means.values())))
    run.set("spread", content)
    _draw(run.dir / "plots", groups, found)
    _print(run.dir, found, differences)


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and not any(word in name for word in TIMING)
    }


def _differences(groups: Mapping[str, Sequence[SweptRun]]) -> Spreads:
    """Return setting -> metric -> difference from the first setting, seed by seed."""
    first, *others = groups
    found: Spreads = {}
    for label in others:
        for name in groups[label][0].metrics:
            base, other = (
                {entry.seed or 0: entry.metrics[name] for entry in groups[side] if name in entry.metrics}
                for side in (first, label)
            )
            difference = paired_differences(base, other)
            if difference is not None:
                found.setdefault(label, {})[name] = difference
    return found


def _csv(found: Spreads, seeds: Mapping[str, Sequence[int | None]]) -> str:
    rows = [
        (label, name, seed, value, entry.mean, entry.sd, entry.low, entry.high)
        for label, part in found.items()
        for name, entry in part.items()
        for seed, value in zip(seeds[label], entry.values, strict=True)
    ]
    return csv_text(("setting", "metric", "seed", "value", "mean", "sd", "low", "high"), rows)


def _print(folder: Path, found: Spreads, differences: Spreads) -> None:
    console = result_console()
    console.print(_table("measure", found))
    if differences:
        console.print(_table(f"less {next(iter(found))}", differences))
    console.print("sd: standard deviation over runs. 95% interval: Student's t for the mean; its method: results.json.")
    console.print(f"runs, table and plots: {folder}", soft_wrap=True)


def _table(title: str, found: Spreads) -> Table:
    numbers = [Column(name, justify="right", no_wrap=True) for name in ("mean", "sd", "95% interval", "n")]
    several = len(found) > 1 or any(found)
    settings = [Column("setting", overflow="fold")] if several else []
    table = Table(Column(title, overflow="fold"), *settings, *numbers, header_style="bold")
    for name in dict.fromkeys(name for part in found.values() for name in part):
        for place, (label, part) in enumerate(found.items()):
            if name in part:
                entry = part[name]
                interval = "-" if entry.low is None else f"{entry.low:.4g} … {entry.high:.4g}"
                sd = "-" if entry.sd is None else f"{entry.sd:.2g}"
                cells = [f"{entry.mean:.4g}", sd, interval, str(len(entry.values))]
                table.add_row("" if place else name, *([label] if several else []), *cells)
    return table


def _draw(folder: Path, groups: Mapping[str, Sequence[SweptRun]], found: Spreads) -> None:
    from reproalign.common.evaluation.plots import MeanCurve, comparison, mean_curve
    from reproalign.common.records.metrics import metric_rows

    histories = {label: [_by_name(metric_rows(entry.folder)) for entry in part] for label, part in groups.items()}
    runs = [history for part in histories.values() for history in part]
    shared = set.intersection(*(set(history) for history in runs)) - set(_AXES)
    names = sorted(shared, key=lambda name: (name not in ("eval_loss", "loss"), not name.startswith("eval_"), name))
    panels = {
        name: {
            label or "mean ± sd": mean_curve([history[name] for history in part]) for label, part in histories.items()
        }
        for name in names[:PANELS]
        if all(set.intersection(*(set(history[name]) for history in part)) for part in histories.values())
    }
    if panels:
        comparison(panels, folder / "training.png")
    keys = list(next(iter(groups.values()))[0].setting)
    at = {label: part[0].setting[keys[0]] for label, part in groups.items()} if len(keys) == 1 else {}
    if len(at) < 2 or len(_numbers({str(key): value for key, value in at.items()})) < len(at):
        return
    order = sorted(at, key=lambda label: at[label])
    measures = [name for name in found[order[0]] if all(name in found[label] for label in order)]
    curves = {}
    for name in measures[:PANELS]:
        entries = [found[label][name] for label in order]
        ends = [[entry.mean + sign * (entry.sd or 0.0) for entry in entries] for sign in (-1, 1)]
        curves[name] = {
            "mean ± sd": MeanCurve([at[label] for label in order], [entry.mean for entry in entries], *ends)
        }
    if curves:
        comparison(curves, folder / "sweep.png", across=keys[0])


def _by_name(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, float]]:
    """Return name -> step -> value of a run's log."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        for name, value in _numbers(row).items():
            found.setdefault(name, {})[row["step"]] = value
    return found
