"""Lines over steps: one run's logged metrics, or several runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from reproalign.common.evaluation.plots.canvas import (
    COLUMNS,
    IDEAL,
    MODEL,
    colours_of,
    legend_below,
    legend_columns,
    mark_chance,
    panels_of,
    save,
    whole_steps,
)

STYLES = ("-", "--", "-.", ":")  # in turn, so that a line does not hide another that equals it
DOTS = 60  # longer lines have no point markers


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
    figure, axes = panels_of(len(present), 4.2, 3.4, columns=len(present))
    for axis, name in zip(axes, present, strict=True):
        styles: dict[str, dict[str, Any]] = {
            name: {"color": MODEL},
            f"eval_{name}": {"color": IDEAL, "marker": "o", "markersize": 6, "linestyle": "--"},
        }
        for key, style in styles.items():
            points = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float)]
            if points:
                style = {"marker": "o" if len(points) <= DOTS else None, "markersize": 3, **style}  # one has no line
                axis.plot(*zip(*points, strict=True), label="held out" if key != name else "training", **style)
        axis.set(xlabel="optimiser step", title=name)
        whole_steps(axis)
        mark_chance(axis, name)
        axis.grid(alpha=0.3)
        if len(axis.get_legend_handles_labels()[1]) > 1:
            axis.legend(frameon=False)
    save(figure, path)


@dataclass(frozen=True)
class MeanCurve:
    """One line of a comparison: means over runs at optimiser steps, and the ends of the band around them."""

    steps: list[int] | list[float]
    means: list[float]
    lows: list[float]
    highs: list[float]


def mean_curve(runs: Sequence[Mapping[Any, float]]) -> MeanCurve:
    """Average runs, each {step: value}, at the steps that all of them have; the band is one standard deviation."""
    steps = sorted(set.intersection(*(set(run) for run in runs)))
    values = [[run[step] for run in runs] for step in steps]
    means, spreads = [fmean(row) for row in values], [stdev(row) if len(row) > 1 else 0.0 for row in values]
    low, high = ([m + sign * s for m, s in zip(means, spreads, strict=True)] for sign in (-1, 1))
    return MeanCurve(steps, means, low, high)


def smoothed(values: Sequence[float], weight: float) -> list[float]:
    """Return the exponential moving average that W&B and TensorBoard draw, without its bias towards 0 at the start.

    s_t = (w s_{t-1} + (1 - w) x_t), divided by 1 - w^t; w = ``weight`` in [0, 1), 0 leaves the values as they are.
    """
    total, result = 0.0, []
    for count, value in enumerate(values, start=1):
        total = weight * total + (1 - weight) * value
        result.append(total / (1 - weight**count))
    return result


def comparison(
    panels: Mapping[str, Mapping[str, MeanCurve]],
    path: Path,
    *,
    across: str = "optimiser step",
    measured: str = "",
    smooth: float = 0.0,
) -> None:
    """Draw lines over steps: one panel per title, in it one line per label, with its band over runs.

    A label has one colour in all panels, and one legend serves them.

    Args:
        panels: title -> label -> curve.
        path: of the PNG.
        across: what the steps are.
        measured: what the values are, where the titles do not say it.
        smooth: weight of :func:`smoothed`; above 0 the curve as it is becomes a faint line behind the smoothed one.
    """
    labels = list(dict.fromkeys(label for curves in panels.values() for label in curves))
    colours = colours_of(labels)
    columns = legend_columns(labels, 4.2 * min(len(panels), COLUMNS))
    figure, axes = panels_of(len(panels), 4.2, 3.4, below=0.22 * -(-len(labels) // columns))
    handles = {}
    for axis, (title, curves) in zip(axes, panels.items(), strict=True):
        for label, curve in curves.items():
            marker = "o" if len(curve.steps) <= DOTS else None
            style = STYLES[labels.index(label) % len(STYLES)]
            means = curve.means
            if smooth:
                axis.plot(curve.steps, means, color=colours[label], alpha=0.25, linewidth=0.8)
                means, marker = smoothed(means, smooth), None
            (handles[label],) = axis.plot(curve.steps, means, style, color=colours[label], marker=marker, markersize=3)
            if curve.lows != curve.highs:
                axis.fill_between(curve.steps, curve.lows, curve.highs, color=colours[label], alpha=0.15, linewidth=0)
        axis.set(xlabel=across, ylabel=measured, title=title)
        if all(isinstance(step, int) for curve in curves.values() for step in curve.steps):
            whole_steps(axis)
        mark_chance(axis, title)
        axis.grid(alpha=0.3)
    legend_below(figure, handles, columns)
    save(figure, path)
