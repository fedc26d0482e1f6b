"""What an MT-Bench run shows: a table, ``results.csv``, ``results.json``, and bars by category."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

from rich.table import Table

from reproalign.common.evaluation.mtbench import HIGHEST, LOWEST, MeanRating
from reproalign.common.evaluation.plots.canvas import IDEAL, MODEL, MUTED, one_panel, save
from reproalign.common.files import csv_text

COLOURS = {"both": MODEL, "1": MUTED, "2": IDEAL}


def score_table(scores: Sequence[MeanRating], title: str, confidence: float) -> Table:
    """Return the scores as a table, a line for each category."""
    turns = list(dict.fromkeys(score.turn for score in scores))
    table = Table(title, *(_turn_label(turn) for turn in turns), "ratings", "unreadable", header_style="bold")
    for category in dict.fromkeys(score.category for score in scores):
        found = {score.turn: score for score in scores if score.category == category}
        cells = [_cell(found.get(turn)) for turn in turns]
        table.add_row(category, *cells, str(found["both"].ratings), str(found["both"].unreadable))
    table.caption = f"mean rating and its {confidence:.0%} bootstrap interval over questions"
    return table


def scores_csv(scores: Sequence[MeanRating]) -> str:
    """Return the scores as CSV: the fields of :class:`~reproalign.common.evaluation.mtbench.MeanRating`."""
    return csv_text([field.name for field in fields(MeanRating)], map(astuple, scores))


def score_metrics(scores: Sequence[MeanRating]) -> dict[str, Any]:
    """Return the scores for a run's record: means by name, the interval of the whole, what could not be read."""
    whole = next(score for score in scores if (score.category, score.turn) == ("all", "both"))
    means: dict[str, Any] = {"mt_bench": whole.mean, "low": whole.low, "high": whole.high}
    means |= {f"turn_{score.turn}": score.mean for score in scores if score.category == "all" and score is not whole}
    means["categories"] = {
        score.category: score.mean for score in scores if score.turn == "both" and score is not whole
    }
    return means | {"questions": whole.questions, "ratings": whole.ratings, "unreadable": whole.unreadable}


def draw_scores(scores: Sequence[MeanRating], title: str, path: Path) -> None:
    """Draw bars by category, one for each turn and one for both, with their intervals; PNG."""
    shown = [score for score in scores if score.mean is not None]
    categories = list(dict.fromkeys(score.category for score in shown))
    turns = list(dict.fromkeys(score.turn for score in shown))
    figure, axis = one_panel(1.8 + 1.1 * max(3, len(categories)), 3.8)
    width = 0.8 / max(1, len(turns))
    for place, turn in enumerate(turns):
        part = [score for score in shown if score.turn == turn]
        spots = [categories.index(score.category) + (place - (len(turns) - 1) / 2) * width for score in part]
        means = [score.mean or 0.0 for score in part]
        errors = [
            [0.0 if score.low is None else mean - score.low for mean, score in zip(means, part, strict=True)],
            [0.0 if score.high is None else score.high - mean for mean, score in zip(means, part, strict=True)],
        ]
        colour = COLOURS.get(turn, MODEL)
        bars = {"yerr": errors, "capsize": 2, "error_kw": {"elinewidth": 0.8}}
        axis.bar(spots, means, width, color=colour, label=_turn_label(turn), **bars)  # type: ignore[arg-type]
    axis.set_xticks(range(len(categories)), categories, rotation=30, ha="right", rotation_mode="anchor")
    axis.set(ylim=(LOWEST - 1, HIGHEST), ylabel="mean rating", title=title)
    axis.grid(axis="y", alpha=0.3)
    axis.legend(frameon=False, ncols=3, fontsize="small")
    save(figure, path)


def _turn_label(turn: str) -> str:
    return "both turns" if turn == "both" else f"turn {turn}"


def _cell(score: MeanRating | None) -> str:
    if score is None or score.mean is None:
        return "none"
    interval = "" if score.low is None else f" {score.low:.2f}-{score.high:.2f}"
    return f"{score.mean:.2f}{interval}"
