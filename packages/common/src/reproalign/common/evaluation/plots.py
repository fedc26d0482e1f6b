"""Pictures of runs, one or several: reliability diagrams, training curves, margins before and after. All are PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reproalign.common.evaluation.calibration import Calibration
from reproalign.common.files import atomic_path

MODEL, IDEAL, MUTED = "#1f6f8b", "#444444", "#c8d5d9"


def reliability_diagram(calibrations: dict[str, Calibration], path: Path) -> None:
    """Draw accuracy over confidence per bin, with the share of pairs in each below; one column per entry."""
    figure = Figure(figsize=(4.2 * len(calibrations), 5.2), layout="constrained")
    axes = figure.subplots(2, len(calibrations), height_ratios=[3, 1], sharex="col", squeeze=False)
    for column, (name, result) in enumerate(calibrations.items()):
        _reliability(axes[0][column], result, name)
        total = sum(bin.count for bin in result.bins)
        lower, width = _bars(result)
        axes[1][column].bar(lower, [bin.count / total for bin in result.bins], width, align="edge", color=MUTED)
        axes[1][column].set(xlabel="confidence max(s, 1 - s)", ylabel="share of pairs", ylim=(0, 1))
    _save(figure, path)


def training_curves(rows: Sequence[dict[str, Any]], path: Path, names: Sequence[str] = ()) -> None:
    """Draw logged metrics over optimiser steps, one panel each; evaluation values as dots in the same panel.

    Args:
        rows: of ``metrics.jsonl``: ``step`` and metrics.
        path: of the PNG.
        names: metrics to draw; those that no row has are left out.
    """
    present = [name for name in names if any(name in row or f"eval_{name}" in row for row in rows)]
    if not present:
        return
    figure = Figure(figsize=(4.2 * len(present), 3.4), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(present), squeeze=False)[0], present, strict=True):
        for key, style in (
            (name, {"color": MODEL}),
            (f"eval_{name}", {"color": IDEAL, "marker": "o", "linestyle": "--"}),
        ):
            points = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float)]
            if points:
                axis.plot(*zip(*points, strict=True), label="held out" if key != name else "training", **style)
        axis.set(xlabel="optimiser step", title=name)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    _save(figure, path)


@dataclass(frozen=True)
class Curve:
    """One line of a comparison: means over runs at optimiser steps, and the range of the runs."""

    steps: list[int]
    means: list[float]
    lows: list[float]
    highs: list[float]


def mean_curve(runs: Sequence[Mapping[int, float]]) -> Curve:
    """Average runs, each {step: value}, at the steps that all of them have."""
    steps = sorted(set.intersection(*(set(run) for run in runs)))
    values = [[run[step] for run in runs] for step in steps]
    return Curve(steps, [fmean(row) for row in values], [min(row) for row in values], [max(row) for row in values])


def comparison(panels: Mapping[str, Mapping[str, Curve]], path: Path) -> None:
    """Draw several runs side by side: one panel per title, in it one line per label, with its range as a band.

    A label has one colour in all panels, and one legend serves them.
    """
    labels = list(dict.fromkeys(label for curves in panels.values() for label in curves))
    palette = colormaps["tab10" if len(labels) <= 10 else "tab20"].colors  # type: ignore[attr-defined]
    colours = {label: palette[index % len(palette)] for index, label in enumerate(labels)}
    figure = Figure(figsize=(4.2 * len(panels), 3.4 + 0.22 * len(labels)), layout="constrained")
    handles = {}
    for axis, (title, curves) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for label, curve in curves.items():
            (handles[label],) = axis.plot(curve.steps, curve.means, color=colours[label], marker="o", markersize=3)
            if curve.lows != curve.highs:
                axis.fill_between(curve.steps, curve.lows, curve.highs, color=colours[label], alpha=0.15, linewidth=0)
        axis.set(xlabel="optimiser step", title=title)
        axis.grid(alpha=0.3)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", frameon=False)
    _save(figure, path)


def margin_histogram(margins: dict[str, Sequence[float]], path: Path) -> None:
    """Draw the distributions of reward margins, one outline per entry."""
    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axis = figure.subplots()
    everything = [value for values in margins.values() for value in values]
    limits = (
        (min(everything), max(everything))
        if min(everything) < max(everything)
        else (everything[0] - 1, everything[0] + 1)
    )
    for (name, values), colour in zip(margins.items(), (MUTED, MODEL, IDEAL), strict=False):
        axis.hist(values, bins=30, range=limits, histtype="stepfilled", alpha=0.6, color=colour, label=name)
    axis.axvline(0, color=IDEAL, linewidth=0.8)
    axis.set(xlabel="reward margin, chosen - rejected", ylabel="pairs")
    axis.legend(frameon=False)
    _save(figure, path)


def _reliability(axis: Axes, result: Calibration, name: str) -> None:
    lower, width = _bars(result)
    axis.bar(
        lower, [bin.accuracy for bin in result.bins], width, align="edge", color=MODEL, alpha=0.75, label="accuracy"
    )
    start = result.edges[0]
    axis.plot([start, 1], [start, 1], color=IDEAL, linestyle="--", label="perfect calibration")
    axis.plot(
        [bin.confidence for bin in result.bins], [bin.accuracy for bin in result.bins], "o", color=IDEAL, markersize=4
    )
    axis.set(
        ylabel="accuracy", ylim=(0, 1), xlim=(start, 1), title=f"{name}\nECE {result.ece:.3f}, MCE {result.mce:.3f}"
    )
    axis.legend(frameon=False, loc="lower right", fontsize="small")


def _bars(result: Calibration) -> tuple[list[float], list[float]]:
    lower = [result.edges[bin.index] for bin in result.bins]
    return lower, [result.edges[bin.index + 1] - start for bin, start in zip(result.bins, lower, strict=True)]


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130, metadata={"Software": None})
