"""Pictures of fronts: task against reward, the paper's series beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from reproalign.common.evaluation.plots.canvas import MODEL, MUTED, colours_of, legend_below, one_panel, panels_of, save
from reproalign.common.study.claims import CheckedClaim
from reproalign.common.study.findings import Finding


@dataclass(frozen=True)
class Line:
    """One series of a picture.

    Attributes:
        label: in the legend.
        x: rewards, in the order in which they are joined.
        y: scores of the task.
        joined: whether a line is drawn through the points.
        errors: standard errors of x and of y, NaN where not known; None: no bars.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    joined: bool = True
    errors: tuple[Sequence[float], Sequence[float]] | None = None


def draw_fronts(panels: Sequence[tuple[str, str, Sequence[Line]]], path: Path, *, across: str = "reward") -> None:
    """Draw series of points, a panel for each (title, name of the y axis, series).

    A label has one colour in all panels, and one legend serves them.

    Args:
        panels: what to draw; those without series stay empty with a word on it.
        path: of the PNG.
        across: name of the x axis.
    """
    colours = colours_of(line.label for _, _, lines in panels for line in lines)
    figure, axes = panels_of(len(panels), 4.4, 3.6, below=0.2 * len(colours))
    handles: dict[str, Any] = {}
    for axis, (title, measured, lines) in zip(axes, panels, strict=True):
        for line in lines:
            handles.setdefault(line.label, _draw(axis, line, colours[line.label]))
        if not lines:
            axis.text(0.5, 0.5, "no points", ha="center", transform=axis.transAxes, color=MUTED)
        axis.set(title=title, xlabel=across, ylabel=measured)
        axis.grid(alpha=0.3)
    legend_below(figure, handles, 2)
    save(figure, path)


def draw_claims(checked: Sequence[CheckedClaim], path: Path) -> None:
    """Draw the share of instances that each claim has borne out, the paper's numbers and ours beside each other."""
    ours = any(entry.ours for entry in checked)
    names = [entry.name for entry in checked]
    figure, axis = one_panel(max(6.0, 0.75 * len(names)), 3.6)
    width = 0.38 if ours else 0.7
    sets = [("the paper's numbers", [entry.paper for entry in checked], MODEL)]
    sets += [("these results", [entry.ours or Finding() for entry in checked], "#d98c3f")] if ours else []
    for place, (label, findings, colour) in enumerate(sets):
        at = np.arange(len(names)) + (place - (len(sets) - 1) / 2) * (width + 0.04)
        for clear, alpha in ((False, 0.45), (True, 1.0)):
            shares = [
                sum(effect.met and (effect.clear or not clear) for effect in finding.effects) / len(finding.effects)
                if finding.effects
                else 0.0
                for finding in findings
            ]
            name = f"{label}{', clear' if clear else ''}"
            axis.bar(at, shares, width, color=colour, alpha=alpha, label=name)
        for spot, finding in zip(at, findings, strict=True):
            text = f"{finding.met}/{len(finding.effects)}" if finding.effects else "–"
            axis.text(spot, 1.02, text, ha="center", fontsize="x-small", rotation=90, va="bottom")
    axis.set_xticks(range(len(names)), names)
    axis.set(ylabel="share of instances borne out", ylim=(0, 1.35), yticks=np.arange(0, 1.01, 0.25))
    axis.legend(frameon=False, fontsize="small", loc="upper right", ncols=2)
    save(figure, path)


def _draw(axis: Axes, line: Line, colour: Any) -> Any:
    style = "-" if line.joined else "none"
    if line.errors:
        xerr, yerr = (np.nan_to_num(np.asarray(found, dtype=float)) for found in line.errors)
        return axis.errorbar(
            line.x, line.y, yerr, xerr, color=colour, marker="o", markersize=4, linestyle=style, elinewidth=0.7
        )
    return axis.plot(line.x, line.y, color=colour, marker="o", markersize=4, linestyle=style)[0]
