"""Points with error bars: one measure over another, and repeated measurements by category."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from reproalign.common.evaluation.plots.canvas import (
    COLUMNS,
    MUTED,
    colours_of,
    legend_below,
    legend_columns,
    panels_of,
    save,
)


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
    colours = colours_of(labels)
    figure, axes = panels_of(len(panels), 5.2, 4.2, below=0.22 * len(labels))
    handles = {}
    for axis, (title, found) in zip(axes, panels.items(), strict=True):
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
    legend_below(figure, handles, legend_columns(labels, 5.2 * min(COLUMNS, len(panels))))
    save(figure, path)


def categories(panels: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]], path: Path) -> None:
    """Draw repeated measurements by category: one panel per title, a colour per label, a column per category.

    Args:
        panels: title -> label -> category -> one value per repetition. Of several values a small dot shows each, a
            large one the mean, and a bar one standard deviation to either side.
        path: of the PNG.
    """
    names = list(dict.fromkeys(name for lines in panels.values() for values in lines.values() for name in values))
    labels = list(dict.fromkeys(label for lines in panels.values() for label in lines))
    colours = colours_of(labels)
    width = max(4.2, 0.35 * len(names) * (len(labels) + 1))
    figure, axes = panels_of(len(panels), width, 3.6, below=0.22 * len(labels), columns=len(panels))
    handles = {}
    for axis, (title, lines) in zip(axes, panels.items(), strict=True):
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
    legend_below(figure, handles)
    save(figure, path)
