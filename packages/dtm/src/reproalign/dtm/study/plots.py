"""Pictures of the study: intervals, curves beside the published ones, tokens, error sets. All are PNG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from reproalign.common.evaluation.plots import IDEAL, MODEL
from reproalign.common.files import atomic_path


def intervals(
    entries: Sequence[tuple[str, float, float | None, float | None]], path: Path, *, measured: str
) -> None:
    """Draw numbers with their intervals, one below the other; the first one stands apart.

    Args:
        entries: label, value, ends of the interval (None: it has none).
        path: of the PNG.
        measured: what the values are.
    """
    figure = Figure(figsize=(6.4, 1.2 + 0.3 * len(entries)), layout="constrained")
    axis = figure.subplots()
    for place, (_, value, low, high) in enumerate(entries):
        ends = None if low is None or high is None else [[max(0.0, value - low)], [max(0.0, high - value)]]
        axis.errorbar([value], [place], xerr=ends, fmt="o", color=MODEL if place else IDEAL, markersize=4, capsize=2)
    if len(entries) > 1:
        axis.axhline(0.5, color=IDEAL, linewidth=0.6)
    axis.set_yticks(range(len(entries)), [label for label, *_ in entries])
    axis.set(xlabel=measured)
    axis.invert_yaxis()
    axis.grid(axis="x", alpha=0.3)
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write ``figure`` to ``path``, whole or not at all."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130, metadata={"Software": None})
