"""The study's pictures: overlaid histograms, boxes of right and wrong pairs, ECE over sets and over wins, a matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from reproalign.common.evaluation.plots.canvas import colours_of, panels_of, save
from reproalign.more.study.runs import Floats

BINS = 60
Panels = Mapping[str, Mapping[str, Floats]]  # domain -> label of a run -> margins


def overlay(panels: Panels, path: Path) -> None:
    """Draw the distributions of reward differences of several models, a panel per test set (figures 1 and 9)."""
    figure, axes = panels_of(len(panels), 4.4, 3.4, below=0.4)
    colours = colours_of([label for runs in panels.values() for label in runs])
    for axis, (domain, runs) in zip(axes, panels.items(), strict=False):
        everything = np.concatenate(list(runs.values()))
        edges = np.linspace(*_limits(everything), BINS + 1).tolist()
        for label, margins in runs.items():
            axis.hist(margins, bins=edges, density=True, histtype="step", color=colours[label], label=label)
        axis.axvline(0, color="black", linewidth=0.6)
        axis.set(title=domain, xlabel="reward difference, better - worse", ylabel="density")
    _legend(figure, colours)
    save(figure, path)


def boxes(panels: Panels, path: Path) -> None:
    """Draw boxes of the reward differences, of right pairs filled and of wrong ones hollow (figures 1, 5 and 8)."""
    figure, axes = panels_of(len(panels), 4.8, 3.6, below=0.4)
    labels = list(dict.fromkeys(label for runs in panels.values() for label in runs))
    colours = colours_of(labels)
    for axis, (domain, runs) in zip(axes, panels.items(), strict=False):
        for place, (label, margins) in enumerate(runs.items()):
            for values, filled in ((margins[margins > 0], True), (margins[margins < 0], False)):
                drawn = axis.boxplot(
                    [values], positions=[place], widths=0.6, patch_artist=True, showfliers=True, sym="."
                )
                for box in drawn["boxes"]:
                    box.set(edgecolor=colours[label], facecolor=colours[label] if filled else "none", alpha=0.8)
                for dots in drawn["fliers"]:
                    dots.set(markeredgecolor=colours[label], markersize=2)
        axis.axhline(0, color="black", linewidth=0.6)
        axis.set(title=domain, ylabel="reward difference")
        axis.set_xticks(range(len(runs)), list(runs), rotation=30, ha="right", fontsize="small")
    sides = [
        Patch(facecolor="grey", label="right pairs"),
        Patch(facecolor="none", edgecolor="grey", label="wrong pairs"),
    ]
    figure.legend(handles=sides, loc="outside lower center", frameon=False, ncols=2)
    save(figure, path)


def ece_over_sets(curves: Mapping[str, Mapping[int, float]], top: Mapping[str, float], path: Path) -> None:
    """Draw the ECE on helpful and harmless over the number of training sets, Top as a dashed line (figure 6).

    Args:
        curves: base -> number of sets -> ECE.
        top: base -> ECE of the models trained on each set alone.
        path: of the PNG.
    """
    figure, (axis,) = panels_of(1, 5.0, 3.6, below=0.4)
    colours = colours_of(curves)
    for base, points in curves.items():
        counts = sorted(points)
        axis.plot(counts, [points[count] for count in counts], "o-", color=colours[base], label=base)
        if base in top:
            axis.axhline(top[base], color=colours[base], linestyle="--", label=f"{base}, top")
    axis.set(xlabel="training sets", ylabel="ECE (10 bins), helpful and harmless")
    axis.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 2.5, 5, 10], integer=True))
    axis.legend(frameon=False, fontsize="small")
    save(figure, path)


def ece_over_wins(points: Mapping[str, Sequence[tuple[float, float]]], path: Path) -> None:
    """Draw ECE over wins - losses of the models aligned by them, a colour per base (figure 7)."""
    figure, (axis,) = panels_of(1, 5.0, 3.6, below=0.4)
    colours = colours_of(points)
    for base, pairs in points.items():
        axis.plot([wins for _, wins in pairs], [ece for ece, _ in pairs], "o", color=colours[base], label=base)
    axis.set(xlabel="wins - losses", ylabel="ECE (10 bins), helpful and harmless")
    axis.legend(frameon=False, fontsize="small")
    save(figure, path)


def matrix(rows: Mapping[str, Mapping[str, float]], columns: Sequence[str], path: Path) -> None:
    """Draw the accuracy of every model on every test set as a matrix (figure 1, left).

    Args:
        rows: label of a model -> test set -> accuracy in [0, 1].
        columns: the test sets, in order.
        path: of the PNG.
    """
    values = np.array([[row.get(name, np.nan) for name in columns] for row in rows.values()])
    figure, (axis,) = panels_of(1, 1.6 + 0.9 * len(columns), 1.6 + 0.4 * len(rows), below=0.4)
    axis.imshow(100 * values, cmap="viridis", aspect="auto")
    middle = np.nanmean(values)
    for (line, place), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if value < middle else "black"
            axis.text(place, line, f"{100 * value:.1f}", ha="center", va="center", color=colour, fontsize="small")
    axis.set_xticks(range(len(columns)), list(columns), rotation=30, ha="right")
    axis.set_yticks(range(len(rows)), list(rows))
    axis.set(title="accuracy (%)")
    save(figure, path)


def _limits(values: Floats) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    return (low, high) if low < high else (low - 1, high + 1)


def _legend(figure: Figure, colours: Mapping[str, Any]) -> None:
    handles = [Patch(facecolor="none", edgecolor=colour, label=label) for label, colour in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", frameon=False, ncols=3)
