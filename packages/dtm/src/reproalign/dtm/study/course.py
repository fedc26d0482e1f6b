"""One measure along the fractions of the data: its peak, its end, and what lies between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from reproalign.dtm.study.scores import BenchmarkScore


@dataclass(frozen=True)
class Course:
    """One measure along the fractions, and how it ends.

    Attributes:
        fractions: ascending; 0 is the base model.
        values: of the measure.
        stderr: their standard errors, None where they are not known.
        base: value at fraction 0; None without.
        peak: the best value after training: the highest, of the loss the lowest.
        peak_at: its fraction, the first of equals.
        final: the last value.
        final_minus_peak: the last value minus the best one.
        final_minus_base: the last value minus the base model's; None without.
    """

    fractions: list[float]
    values: list[float]
    stderr: list[float | None]
    base: float | None
    peak: float
    peak_at: float
    final: float
    final_minus_peak: float
    final_minus_base: float | None


def course(points: Mapping[float, BenchmarkScore], *, lower_is_better: bool = False) -> Course:
    """Return a measure's course over the fractions of ``points``, of which one at least is above 0.

    Args:
        points: fraction -> score.
        lower_is_better: for losses.
    """
    fractions = sorted(points)
    values = [points[fraction].value for fraction in fractions]
    trained = {fraction: points[fraction].value for fraction in fractions if fraction > 0}
    pick = min if lower_is_better else max
    peak_at = pick(trained, key=lambda fraction: trained[fraction])
    base = points[0.0].value if 0.0 in points else None
    final = values[-1]
    errors = [points[fraction].stderr for fraction in fractions]
    return Course(
        fractions,
        values,
        errors,
        base,
        trained[peak_at],
        peak_at,
        final,
        final - trained[peak_at],
        None if base is None else final - base,
    )
