"""Pictures of preference pairs: calibration, margins, wins and losses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reproalign.common.evaluation.calibration import Calibration
from reproalign.common.evaluation.plots.canvas import (
    COLUMNS,
    IDEAL,
    MODEL,
    MUTED,
    one_panel,
    panels_of,
    save,
    whole_counts,
)

SAME = 1e-5  # margins that differ by less are those of a policy that equals its reference


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
    columns = min(COLUMNS, len(calibrations))
    rows = -(-len(calibrations) // columns)
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
    for axis in (axis for pair in places[len(calibrations) :] for axis in pair):
        axis.set_axis_off()
    save(figure, path)


def outcomes(bars: Mapping[str, tuple[int, int, int]], path: Path, *, notes: Mapping[str, str]) -> None:
    """Draw wins, ties and losses as shares of stacked bars with the counts in them, one bar per label.

    Args:
        bars: label -> wins, ties, losses.
        path: of the PNG.
        notes: label -> what stands behind its bar, such as the p value of a test.
    """
    figure, axis = one_panel(8.0, 1.0 + 0.5 * len(bars))
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
    save(figure, path)


def margin_histogram(margins: Mapping[str, Sequence[float]], path: Path) -> None:
    """Draw the distributions of reward margins, one outline per entry; a line where all of them are the same."""
    figure, axis = one_panel(5.5, 3.6)
    spread = {name: values for name, values in margins.items() if max(values) - min(values) > SAME}
    for name in margins.keys() - spread.keys():  # a bar as high as all pairs together would squeeze the others
        axis.axvline(
            margins[name][0], color=MODEL, linewidth=2.5, linestyle=":", label=f"{name}: all {margins[name][0]:.2g}"
        )
    if spread:
        _histogram(axis, spread, _limits(value for values in spread.values() for value in values))
    axis.legend(frameon=False, fontsize="small")
    axis.axvline(0, color=IDEAL, linewidth=0.8)
    axis.set(xlabel="reward margin, chosen - rejected", ylabel="pairs")
    save(figure, path)


def histograms(panels: Mapping[str, Mapping[str, Sequence[float]]], path: Path, *, measured: str, counted: str) -> None:
    """Draw distributions over one range, one panel per title and in it one outline per label, with a line at 0.

    Args:
        panels: title -> label -> values; at most three labels.
        path: of the PNG.
        measured: what the values are.
        counted: what has them.
    """
    figure, axes = panels_of(len(panels), 4.2, 3.2)
    limits = _limits(value for entries in panels.values() for values in entries.values() for value in values)
    for axis, (title, values) in zip(axes, panels.items(), strict=True):
        _histogram(axis, values, limits)
        axis.axvline(0, color=IDEAL, linewidth=0.8)
        axis.set(xlabel=measured, ylabel=counted, title=title)
    save(figure, path)


def _limits(values: Iterable[float]) -> tuple[float, float]:
    everything = list(values)
    low, high = min(everything), max(everything)
    return (low, high) if low < high else (low - 1, low + 1)


def _histogram(axis: Axes, entries: Mapping[str, Sequence[float]], limits: tuple[float, float]) -> None:
    colours = (MUTED, MODEL, IDEAL) if len(entries) > 1 else (MODEL,)
    for (name, values), colour in zip(entries.items(), colours, strict=False):
        axis.hist(values, bins=30, range=limits, histtype="stepfilled", alpha=0.6, color=colour, label=name)
    whole_counts(axis)
    if len(entries) > 1:
        axis.legend(frameon=False, fontsize="small")


def _reliability(axis: Axes, result: Calibration, name: str, observed: str) -> None:
    lower, width = _bars(result)
    axis.bar(lower, [bin.accuracy for bin in result.bins], width, align="edge", color=MODEL, alpha=0.75, label=observed)
    start = result.edges[0]
    axis.plot([start, 1], [start, 1], color=IDEAL, linestyle="--", label="perfect calibration")
    confidences, outcomes = [bin.confidence for bin in result.bins], [bin.accuracy for bin in result.bins]
    axis.plot(confidences, outcomes, "o", color=IDEAL, markersize=4, clip_on=False, zorder=3)  # whole at 0 and 1 too
    axis.set(ylabel=observed, ylim=(0, 1), xlim=(start, 1), title=f"{name}\nECE {result.ece:.3f}, MCE {result.mce:.3f}")
    axis.legend(framealpha=0.85, edgecolor="none", loc="lower right", fontsize="small")


def _bars(result: Calibration) -> tuple[list[float], list[float]]:
    lower = [result.edges[bin.index] for bin in result.bins]
    return lower, [result.edges[bin.index + 1] - start for bin, start in zip(result.bins, lower, strict=True)]
