"""Means over the second half of runs against alpha, one line per measure and mu: the paper's Figures 4, 10 and 12."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reproalign.common.errors import UserError
from reproalign.common.evaluation.plots import MeanCurve, mean_curve
from reproalign.radpo.published import sweep
from reproalign.radpo.report import LABELS, MeasuredRun, second_half

Line = tuple[str, str, str]  # loss, measure, mu


def against_alpha(
    runs: Sequence[MeasuredRun], metrics: Sequence[str], model: str | None = None
) -> dict[str, dict[str, MeanCurve]]:
    """Return panel -> line -> curve over alpha; runs that differ in seed make a mean and its standard deviation.

    Args:
        runs: of the second form of TDPO or Ra-DPO.
        metrics: a panel each.
        model: whose published values are drawn beside.

    Raises:
        UserError: for a run without alpha or of an earlier version, or fewer than two evaluations in its second half.
    """
    found: dict[Line, dict[float, list[dict[str, float]]]] = {}
    for run in runs:
        line, alpha = _line(run)
        means = second_half(run.points)
        if not means:
            raise UserError(f"{run.folder}: one evaluation in the second half of the run; set trainer.eval_steps lower")
        found.setdefault(line, {}).setdefault(alpha, []).append(means)
    panels: dict[str, dict[str, MeanCurve]] = {}
    for name in metrics:
        lines = panels.setdefault(LABELS[name], {})
        for line, by_alpha in sorted(found.items()):
            curve = _curve(by_alpha, name)
            if curve:
                lines[_label(line)] = curve
            if model and (printed := sweep(model, name, line[0], line[1].replace("released_tail", "cvar"), line[2])):
                lines[f"{_label(line)}, published"] = MeanCurve(list(printed), *([*printed.values()] for _ in range(3)))
    return panels


def _line(run: MeasuredRun) -> tuple[Line, float]:
    loss: dict[str, Any] = run.record["config"]["loss"]
    if loss.get("alpha") is None or "measure" in loss:
        raise UserError(
            f"{run.folder}: loss={loss.get('name')} has no alpha, or the run is of an earlier version; leave it out"
        )
    name, *parameters = (loss.get("risk") or {"name": ""}).values()
    return (loss["name"], name, f"{parameters[0]:g}" if parameters else ""), loss["alpha"]


def _label(line: Line) -> str:
    _, measure, mu = line
    return f"Ra-DPO2, {measure} {mu}".rstrip() if measure else "TDPO2"


def _curve(by_alpha: dict[float, list[dict[str, float]]], name: str) -> MeanCurve | None:
    points = {
        alpha: mean_curve([{0: means[name]} for means in entries])
        for alpha, entries in sorted(by_alpha.items())
        if all(name in means for means in entries)
    }
    if not points:
        return None
    parts = [[getattr(curve, side)[0] for curve in points.values()] for side in ("means", "lows", "highs")]
    return MeanCurve(list(points), *parts)
