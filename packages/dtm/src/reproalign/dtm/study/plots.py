"""Pictures of the study: intervals, curves beside the published ones, tokens, error sets. All are PNG."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from reproalign.common.evaluation.plots.canvas import IDEAL, MODEL, MUTED, one_panel, panels_of, save
from reproalign.common.study.claims import CheckedClaim


def intervals(entries: Sequence[tuple[str, float, float | None, float | None]], path: Path, *, measured: str) -> None:
    """Draw numbers with their intervals, one below the other; the first one stands apart.

    Args:
        entries: label, value, ends of the interval (None: it has none).
        path: of the PNG.
        measured: what the values are.
    """
    figure, axis = one_panel(6.4, 1.2 + 0.3 * len(entries))
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


def effects(checked: Sequence[CheckedClaim], path: Path) -> None:
    """Draw the differences that claims are about: the paper's as rings, ours as dots, with two standard errors.

    One panel for each claim that is about differences. An instance that does not bear the claim out is a cross.

    Args:
        checked: claims with their findings.
        path: of the PNG.
    """
    panels = [entry for entry in checked if any(effect.value is not None for effect in entry.paper.effects)]
    if not panels:
        return
    tallest = max(len(entry.paper.effects) for entry in panels)
    figure, axes = panels_of(len(panels), 5.0, 1.3 + 0.22 * tallest)
    for axis, entry in zip(axes, panels, strict=True):
        labels = [effect.label for effect in entry.paper.effects]
        for shift, finding, colour, filled in ((0.15, entry.ours, MODEL, True), (-0.15, entry.paper, IDEAL, False)):
            for effect in finding.effects if finding else ():
                if effect.value is not None and effect.label in labels:
                    error = None if not effect.z else abs(2 * effect.value / effect.z)
                    axis.errorbar(
                        [effect.value],
                        [labels.index(effect.label) + shift],
                        xerr=error,
                        fmt="o" if effect.met else "X",
                        color=colour,
                        markerfacecolor=colour if filled else "white",
                        markersize=5,
                        elinewidth=0.8,
                    )
        axis.axvline(0, color=IDEAL, linewidth=0.8)
        axis.set_yticks(range(len(labels)), [label.replace(" ", "\n") for label in labels], fontsize="small")
        axis.set(ylim=(len(labels) - 0.5, -0.5))
        axis.set_title(textwrap.fill(entry.claim["claim"], 34), fontsize=10)
        axis.grid(axis="x", alpha=0.3)
    figure.supxlabel("difference, points; rings: published, dots: here; crosses do not bear the claim out", fontsize=9)
    save(figure, path)


def bars(panels: Mapping[str, Sequence[tuple[str, float]]], path: Path, *, measured: str) -> None:
    """Draw labelled numbers as bars, the first on top; one panel for each title, on one scale.

    Args:
        panels: title -> label and number of each bar.
        path: of the PNG.
        measured: what the numbers are.
    """
    tallest = max(len(entries) for entries in panels.values())
    figure = Figure(figsize=(4.2 * len(panels), 1.2 + 0.22 * tallest), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharex=True)[0]
    for axis, (title, entries) in zip(axes, panels.items(), strict=True):
        axis.barh(range(len(entries)), [value for _, value in entries], color=MODEL, alpha=0.8)
        labels = [label.replace("$", r"\$") for label, _ in entries]  # no formula
        axis.set_yticks(range(len(entries)), labels, fontsize="small")
        axis.set(title=title, xlabel=measured, ylim=(tallest - 0.4, -0.6))
        axis.axvline(0, color=IDEAL, linewidth=0.8)
        axis.grid(axis="x", alpha=0.3)
    save(figure, path)


def error_sets(
    unique: Mapping[str, int], corrected: Mapping[str, int], jaccard: Mapping[tuple[str, str], float], path: Path
) -> None:
    """Draw each sub-model's own errors, corrected by the merged model or not, beside the Jaccard indices of pairs."""
    names = list(unique)
    figure = Figure(figsize=(9.0, 1.8 + 0.5 * len(names)), layout="constrained")
    own, pairs = figure.subplots(1, 2)
    places = range(len(names))
    own.barh(places, [corrected[name] for name in names], color=MODEL, label="corrected by the merged model")
    kept = [unique[name] - corrected[name] for name in names]
    own.barh(places, kept, left=[corrected[name] for name in names], color=MUTED, label="kept")
    own.set_yticks(places, names)
    own.invert_yaxis()
    own.set(title="errors of one sub-model alone", xlabel="items")
    own.legend(frameon=False, fontsize="small")
    both = {**jaccard, **{(other, one): value for (one, other), value in jaccard.items()}}
    table = [[both.get((one, other), 1.0) for other in names] for one in names]
    pairs.imshow(table, vmin=0, vmax=1, cmap="Blues")
    for row, values in enumerate(table):
        for column, value in enumerate(values):
            pairs.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if value > 0.6 else IDEAL)
    pairs.set_xticks(places, names, rotation=30, ha="right")
    pairs.set_yticks(places, names)
    pairs.set(title="Jaccard index of errors")
    save(figure, path)
