"""What every picture is made with: colours, panels side by side, a legend below, and a PNG written whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from reproalign.common.files import atomic_path

MODEL, IDEAL, MUTED = "#1f77b4", "#444444", "#c8d5d9"  # the first is that of several lines' first, too
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


def legend_columns(labels: Sequence[str], width: float) -> int:
    """Return how many entries of a legend fit side by side into ``width`` inches."""
    entry = 0.6 + 0.085 * max(map(len, labels))  # inches that the longest label takes with its marker
    return max(1, min(len(labels), int(width // entry)))


def whole_steps(axis: Axes) -> None:
    """Put ticks at whole numbers alone: there is no half of an optimiser step."""
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))  # one where there is one step


def whole_counts(axis: Axes) -> None:
    """Likewise up the panel: there is no half of a pair."""
    axis.yaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def mark_chance(axis: Axes, name: str) -> None:
    """Draw a line where guessing is, in a panel of accuracies of pairs."""
    if "accurac" in name and axis.get_ylim()[0] < 0.5 < axis.get_ylim()[1]:
        axis.axhline(0.5, color=IDEAL, linewidth=0.8, linestyle=":")


def save(figure: Figure, path: Path) -> None:
    """Write ``figure`` to ``path`` as PNG, whole or not at all."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130, metadata={"Software": None})
