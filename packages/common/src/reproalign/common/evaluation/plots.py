"""Pictures of runs, one or several: reliability diagrams, training curves, margins before and after. All are PNG."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reproalign.common.evaluation.calibration import Calibration
from reproalign.common.files import atomic_path

MODEL, IDEAL, MUTED = "#1f77b4", "#444444", "#c8d5d9"  # the first is that of several lines' first, too
STYLES = ("-", "--", "-.", ":")  # in turn, so that a line does not hide another that equals it
COLUMNS = 3  # at most, of panels side by side
SAME = 1e-5  # margins that differ by less are those of a policy that equals its reference
DOTS = 60  # a line of more points has none of them marked


def reliability_diagram(
    calibrations: Mapping[str, Calibration],
    path: Path,
    *,
    predicted: str = "confidence max(s, 1 - s)",
    observed: str = "accuracy",
) -> None:
    """Draw outcomes over predictions per bin, with the share of pairs in each below; one column per entry.

    Args:
        calibrations: title -> calibration; more than COLUMNS of them go into several rows.
        path: of the PNG.
        predicted: what is binned.
        observed: what is averaged in a bin.
    """
    columns, rows = _grid(len(calibrations))
    figure = Figure(figsize=(4.2 * columns, 5.2 * rows), layout="constrained")
    axes = figure.subplots(2 * rows, columns, height_ratios=[3, 1] * rows, squeeze=False)
    places = [(axes[2 * row][column], axes[2 * row + 1][column]) for row in range(rows) for column in range(columns)]
    for (upper, below), (name, result) in zip(places, calibrations.items(), strict=False):
        below.sharex(upper)
        upper.tick_params(labelbottom=False)
        _reliability(upper, result, name, observed)
        total = sum(bin.count for bin in result.bins)
        lower, width = _bars(result)
        shares = [bin.count / total for bin in result.bins]
        below.bar(lower, shares, width, align="edge", color=MUTED)
        below.set(xlabel=predicted, ylabel="share of pairs", ylim=(0, 1 if max(shares) > 0.5 else 0.5))
    _hide(axis for pair in places[len(calibrations) :] for axis in pair)
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
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        _mark_chance(axis, name)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    _save(figure, path)


@dataclass(frozen=True)
class Curve:
    """One line of a comparison: means over runs at optimiser steps, and the ends of the band around them."""

    steps: list[int] | list[float]
    means: list[float]
    lows: list[float]
    highs: list[float]


def mean_curve(runs: Sequence[Mapping[Any, float]]) -> Curve:
    """Average runs, each {step: value}, at the steps that all of them have; the band is one standard deviation."""
    steps = sorted(set.intersection(*(set(run) for run in runs)))
    values = [[run[step] for run in runs] for step in steps]
    means, spreads = [fmean(row) for row in values], [stdev(row) if len(row) > 1 else 0.0 for row in values]
    low, high = ([m + sign * s for m, s in zip(means, spreads, strict=True)] for sign in (-1, 1))
    return Curve(steps, means, low, high)


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
    panels: Mapping[str, Mapping[str, Curve]],
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
    colours = _colours(labels)
    columns, rows = _grid(len(panels))
    legend_columns = _legend_columns(labels, 4.2 * columns)
    legend_height = 0.22 * -(-len(labels) // legend_columns)
    figure = Figure(figsize=(4.2 * columns, 3.4 * rows + legend_height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    handles = {}
    for axis, (title, curves) in zip(axes, panels.items(), strict=False):
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
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        _mark_chance(axis, title)
        axis.grid(alpha=0.3)
    _hide(axes[len(panels) :])
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", frameon=False, ncols=legend_columns)
    _save(figure, path)


def outcomes(bars: Mapping[str, tuple[int, int, int]], path: Path, *, notes: Mapping[str, str]) -> None:
    """Draw wins, ties and losses as shares of stacked bars with the counts in them, one bar per label.

    Args:
        bars: label -> wins, ties, losses.
        path: of the PNG.
        notes: label -> what stands behind its bar, such as the p value of a test.
    """
    figure = Figure(figsize=(8.0, 1.0 + 0.5 * len(bars)), layout="constrained")
    axis = figure.subplots()
    for place, (label, counts) in enumerate(bars.items()):
        left = 0.0
        for name, count, colour in zip(("win", "tie", "lose"), counts, (MODEL, MUTED, IDEAL), strict=True):
            share = 100 * count / sum(counts)
            axis.barh(place, share, left=left, color=colour, label=name if not place else None)
            if count:
                text_colour = "black" if colour == MUTED else "white"
                axis.text(left + share / 2, place, str(count), ha="center", va="center", color=text_colour)
            left += share
        axis.text(101, place, notes.get(label, ""), va="center", fontsize="small")
    axis.set_yticks(range(len(bars)), list(bars))
    axis.invert_yaxis()
    axis.set(xlim=(0, 100), xlabel="percent of the instructions")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    _save(figure, path)


@dataclass(frozen=True)
class Front:
    """Points of two measures, in the order in which they are joined.

    Attributes:
        xs: the first measure.
        ys: the second.
        labels: what stands beside each dot; empty text: nothing.
        x_errors: half widths of the bars across; 0: none.
        y_errors: likewise up and down.
        joined: draw a line through the points.
    """

    xs: Sequence[float]
    ys: Sequence[float]
    labels: Sequence[str]
    x_errors: Sequence[float]
    y_errors: Sequence[float]
    joined: bool = True


def fronts(panels: Mapping[str, Mapping[str, Front]], path: Path, *, across: Mapping[str, str]) -> None:
    """Draw one measure over another: a panel per title with axes of its own, in it a line or dots per label.

    A label has one colour in all panels, and one legend serves them.

    Args:
        panels: title -> label -> points.
        path: of the PNG.
        across: title -> what the first measure is.
    """
    labels = list(dict.fromkeys(label for found in panels.values() for label in found))
    colours = _colours(labels)
    columns, rows = _grid(len(panels))
    figure = Figure(figsize=(5.2 * columns, 4.2 * rows + 0.22 * len(labels)), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    handles = {}
    for axis, (title, found) in zip(axes, panels.items(), strict=False):
        for label, front in found.items():
            handles[label] = axis.errorbar(
                front.xs,
                front.ys,
                xerr=list(front.x_errors) if any(front.x_errors) else None,
                yerr=list(front.y_errors) if any(front.y_errors) else None,
                color=colours[label],
                fmt="-o" if front.joined else "o",
                markersize=3.5,
                linewidth=1.2,
                elinewidth=0.5,
            )
            for x, y, text in zip(front.xs, front.ys, front.labels, strict=True):
                axis.annotate(
                    text, (x, y), (3, 3), textcoords="offset points", fontsize="x-small", color=colours[label]
                )
        axis.set(xlabel=across[title], title=title)
        axis.grid(alpha=0.3)
    _hide(axes[len(panels) :])
    legend_columns = _legend_columns(labels, 5.2 * columns)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", frameon=False, ncols=legend_columns)
    _save(figure, path)


def categories(panels: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]], path: Path) -> None:
    """Draw repeated measurements by category: one panel per title, a colour per label, a column per category.

    Args:
        panels: title -> label -> category -> one value per repetition. Of several values a small dot shows each, a
            large one the mean, and a bar one standard deviation to either side.
        path: of the PNG.
    """
    names = list(dict.fromkeys(name for lines in panels.values() for values in lines.values() for name in values))
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    colours = _colours(labels)
    width = max(4.2, 0.35 * len(names) * (len(labels) + 1))
    figure = Figure(figsize=(width * len(panels), 3.6 + 0.22 * len(labels)), layout="constrained")
    handles = {}
    for axis, (title, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for label, measured in lines.items():
            shift = (labels.index(label) + 1) / (len(labels) + 1) - 0.5
            places = [names.index(name) + shift for name in measured]
            handles[label] = axis.errorbar(
                places,
                [fmean(values) for values in measured.values()],
                [stdev(values) if len(values) > 1 else 0.0 for values in measured.values()],
                color=colours[label],
                fmt="o",
                markersize=5,
                capsize=2,
            )
            for place, values in zip(places, measured.values(), strict=True):
                axis.plot([place] * len(values), values, "o", color=colours[label], markersize=2.5, alpha=0.5)
        for border in range(1, len(names)):
            axis.axvline(border - 0.5, color=MUTED, linewidth=0.8)
        axis.set_xticks(range(len(names)), names, rotation=30, ha="right", rotation_mode="anchor")
        axis.set(title=title, xlim=(-0.5, len(names) - 0.5))
        axis.grid(axis="y", alpha=0.3)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", frameon=False)
    _save(figure, path)


def margin_histogram(margins: Mapping[str, Sequence[float]], path: Path) -> None:
    """Draw the distributions of reward margins, one outline per entry; a line where all of them are the same."""
    figure = Figure(figsize=(5.5, 3.6), layout="constrained")
    axis = figure.subplots()
    spread = {name: values for name, values in margins.items() if max(values) - min(values) > SAME}
    for name in margins.keys() - spread.keys():  # a bar as high as all pairs together would squeeze the others
        axis.axvline(margins[name][0], color=MODEL, linestyle=":", label=f"{name}: all {margins[name][0]:.2g}")
    if spread:
        _histogram(axis, spread, _limits(value for values in spread.values() for value in values))
    axis.legend(frameon=False, fontsize="small")
    axis.axvline(0, color=IDEAL, linewidth=0.8)
    axis.set(xlabel="reward margin, chosen - rejected", ylabel="pairs")
    _save(figure, path)


def histograms(panels: Mapping[str, Mapping[str, Sequence[float]]], path: Path, *, measured: str, counted: str) -> None:
    """Draw distributions over one range, one panel per title and in it one outline per label, with a line at 0.

    Args:
        panels: title -> label -> values; at most three labels.
        path: of the PNG.
        measured: what the values are.
        counted: what has them.
    """
    columns, rows = _grid(len(panels))
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    limits = _limits(value for entries in panels.values() for values in entries.values() for value in values)
    for axis, (title, values) in zip(axes, panels.items(), strict=False):
        _histogram(axis, values, limits)
        axis.axvline(0, color=IDEAL, linewidth=0.8)
        axis.set(xlabel=measured, ylabel=counted, title=title)
    _hide(axes[len(panels) :])
    _save(figure, path)


def _limits(values: Iterable[float]) -> tuple[float, float]:
    everything = list(values)
    low, high = min(everything), max(everything)
    return (low, high) if low < high else (low - 1, low + 1)


def _histogram(axis: Axes, entries: Mapping[str, Sequence[float]], limits: tuple[float, float]) -> None:
    colours = (MUTED, MODEL, IDEAL) if len(entries) > 1 else (MODEL,)
    for (name, values), colour in zip(entries.items(), colours, strict=False):
        axis.hist(values, bins=30, range=limits, histtype="stepfilled", alpha=0.6, color=colour, label=name)
    axis.legend(frameon=False, fontsize="small")


def _colours(labels: Sequence[str]) -> dict[str, Any]:
    palette = colormaps["tab10" if len(labels) <= 10 else "tab20"].colors  # type: ignore[attr-defined]
    return {label: palette[index % len(palette)] for index, label in enumerate(labels)}


def _reliability(axis: Axes, result: Calibration, name: str, observed: str) -> None:
    lower, width = _bars(result)
    axis.bar(lower, [bin.accuracy for bin in result.bins], width, align="edge", color=MODEL, alpha=0.75, label=observed)
    start = result.edges[0]
    axis.plot([start, 1], [start, 1], color=IDEAL, linestyle="--", label="perfect calibration")
    axis.plot(
        [bin.confidence for bin in result.bins], [bin.accuracy for bin in result.bins], "o", color=IDEAL, markersize=4
    )
    axis.set(ylabel=observed, ylim=(0, 1), xlim=(start, 1), title=f"{name}\nECE {result.ece:.3f}, MCE {result.mce:.3f}")
    axis.legend(framealpha=0.85, edgecolor="none", loc="lower right", fontsize="small")


def _mark_chance(axis: Axes, name: str) -> None:
    """Draw a line where guessing is, in a panel of accuracies of pairs."""
    if "accurac" in name and axis.get_ylim()[0] < 0.5 < axis.get_ylim()[1]:
        axis.axhline(0.5, color=IDEAL, linewidth=0.8, linestyle=":")


def _legend_columns(labels: Sequence[str], width: float) -> int:
    """How many entries of a legend fit side by side into ``width`` inches."""
    entry = 0.6 + 0.085 * max(map(len, labels))  # inches that the longest label takes with its marker
    return max(1, min(len(labels), int(width // entry)))


def _grid(panels: int) -> tuple[int, int]:
    """Columns and rows."""
    columns = min(COLUMNS, panels)
    return columns, -(-panels // columns)


def _hide(axes: Iterable[Axes]) -> None:
    for axis in axes:
        axis.set_axis_off()


def _bars(result: Calibration) -> tuple[list[float], list[float]]:
    lower = [result.edges[bin.index] for bin in result.bins]
    return lower, [result.edges[bin.index + 1] - start for bin, start in zip(result.bins, lower, strict=True)]


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130, metadata={"Software": None})
