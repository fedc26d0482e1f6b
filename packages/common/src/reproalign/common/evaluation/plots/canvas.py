"""What every picture is made with: colours, panels side by side, a legend below, and a PNG written whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reproalign.common.files import atomic_path

MODEL, IDEAL, MUTED = "#1f6f8b", "#444444", "#c8d5d9"
COLUMNS = 3  # at most, of panels side by side


def one_panel(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure of one panel; sizes in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def panels_of(
    count: int, width: float, height: float, *, below: float = 0.0, columns: int = COLUMNS
) -> tuple[Figure, list[Axes]]:
    """Return a figure of ``count`` panels, and their axes row by row.

    Args:
        count: at least 1.
        width: of a panel, in inches.
        height: likewise.
        below: inches for a legend under the panels.
        columns: at most, side by side.
    """
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows + below), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flatten())
    for axis in axes[count:]:
        axis.set_axis_off()
    return figure, axes[:count]


def colours_of(labels: Iterable[str]) -> dict[str, Any]:
    """Return a colour for each label, of ten or twenty that are easily told apart."""
    names = list(dict.fromkeys(labels))
    palette = colormaps["tab10" if len(names) <= 10 else "tab20"].colors  # type: ignore[attr-defined]
    return {name: palette[index % len(palette)] for index, name in enumerate(names)}


def legend_below(figure: Figure, handles: Mapping[str, Any], columns: int = 1) -> None:
    """Put one legend for all panels under them: label -> what was drawn."""
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", frameon=False, ncols=columns)


def save(figure: Figure, path: Path) -> None:
    """Write ``figure`` to ``path`` as PNG, whole or not at all."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130, metadata={"Software": None})
