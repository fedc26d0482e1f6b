"""Series of points as lines of a picture."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from reproalign.ama.study.plots import Line
from reproalign.ama.study.results import Results

_FRONTS = ("ma", "hma")
TITLES = {
    "reading": "reading comprehension (F1)",
    "common_sense": "common sense (accuracy)",
    "bleu": "translation (BLEU)",
}


def claim_panels(published: Results, ours: Results | None) -> list[tuple[str, str, list[Line]]]:
    """Return the fronts of one ratio and of learned ratios: a row of the paper's, and one of ours.

    Their axes are apart, since rewards of different reward models have no common scale.
    """
    metrics = ["reading", "common_sense", "bleu"]
    panels = [(f"paper, {TITLES[metric]}", metric, sweep_lines(published, metric)) for metric in metrics]
    if ours:
        shared = [metric for metric in metrics if metric in ours.metrics] or ours.metrics[1:]
        panels += [(f"here, {TITLES.get(metric, metric)}", metric, sweep_lines(ours, metric)) for metric in shared]
    return panels


def sweep_lines(
    results: Results, metric: str, methods: Sequence[str] = _FRONTS, algorithms: Iterable[str] | None = None
) -> list[Line]:
    """Return the sweeps over α that have a metric, a line for each algorithm and method.

    Args:
        results: the points.
        metric: of the y axis.
        methods: of the sweeps.
        algorithms: None: those whose reward is a reward model's.
    """
    found = dict.fromkeys(
        point.algorithm
        for point in results.points
        if point.method in methods
        and (algorithms is None or point.algorithm in set(algorithms))
        and not point.notes.get("measure")
    )
    lines = []
    for algorithm in found:
        for method in methods:
            sweep = results.known(results.sweep(algorithm, method), metric)
            if len(sweep) > 1:
                lines.append(line_of(results, sweep, metric, f"{method.upper()} ({algorithm.upper()})"))
    return lines


def line_of(results: Results, indices: Sequence[int], metric: str, label: str, *, joined: bool = True) -> Line:
    """Return points as a line, with the standard errors that are known."""
    rows = list(indices)
    values = results.values[rows][:, [0, results.column(metric)]]
    measures = [[results.points[index].reward, results.points[index].metrics.get(metric)] for index in rows]
    errors = [
        [np.nan if found is None or found.stderr is None else found.stderr for found in column]
        for column in zip(*measures, strict=True)
    ]
    known = bool(np.isfinite(np.asarray(errors)).any())
    bars = (errors[0], errors[1]) if known else None
    return Line(label, values[:, 0].tolist(), values[:, 1].tolist(), joined, bars)
