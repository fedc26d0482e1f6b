"""Pictures of fronts: task against reward, the paper's series beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reproalign.ama.study.claims_report import Checked
from reproalign.ama.study.findings import Finding
from reproalign.common.files import atomic_path

_MUTED = "#9aa7ab"
_PANELS = 3  # side by side


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
    columns = min(_PANELS, len(panels))
    rows = -(-len(panels) // columns)
    labels = list(dict.fromkeys(line.label for _, _, lines in panels for line in lines))
    palette: Any = colormaps["tab20" if len(labels) > 10 else "tab10"]
    colours = {label: palette.colors[place % len(palette.colors)] for place, label in enumerate(labels)}
    figure = Figure(figsize=(4.4 * columns, 3.6 * rows + 0.2 * len(labels)), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    handles: dict[str, Any] = {}
    for axis, (title, measured, lines) in zip(axes, panels, strict=False):
        for line in lines:
            handles.setdefault(line.label, _draw(axis, line, colours[line.label]))
        if not lines:
            axis.text(0.5, 0.5, "no points", ha="center", transform=axis.transAxes, color=_MUTED)
        axis.set(title=title, xlabel=across, ylabel=measured)
        axis.grid(alpha=0.3)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", frameon=False, ncols=2)
    _save(figure, path)


def draw_claims(checked: Sequence[Checked], path: Path) -> None:
    """Draw the share of instances that each claim has borne out, the paper's numbers and ours beside each other."""
    ours = any(entry.ours for entry in checked)
    names = [entry.name for entry in checked]
    figure = Figure(figsize=(max(6.0, 0.75 * len(names)), 3.6), layout="constrained")
    axis = figure.subplots()
    width = 0.38 if ours else 0.7
    sets = [("the paper's numbers", [entry.paper for entry in checked], "#1f6f8b")]
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
    _save(figure, path)


def _draw(axis: Axes, line: Line, colour: Any) -> Any:
    style = "-" if line.joined else "none"
    if line.errors:
        xerr, yerr = (np.nan_to_num(np.asarray(found, dtype=float)) for found in line.errors)
        return axis.errorbar(
            line.x, line.y, yerr, xerr, color=colour, marker="o", markersize=4, linestyle=style, elinewidth=0.7
        )
    return axis.plot(line.x, line.y, color=colour, marker="o", markersize=4, linestyle=style)[0]


def _save(figure: Figure, path: Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130, metadata={"Software": None})
