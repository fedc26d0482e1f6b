"""Pictures of runs, one or several; all are PNG."""

from __future__ import annotations

from reproalign.common.evaluation.plots.curves import MeanCurve, comparison, mean_curve, smoothed, training_curves
from reproalign.common.evaluation.plots.pairs import histograms, margin_histogram, outcomes, reliability_diagram
from reproalign.common.evaluation.plots.points import Front, categories, fronts

__all__ = [
    "Front",
    "MeanCurve",
    "categories",
    "comparison",
    "fronts",
    "histograms",
    "margin_histogram",
    "mean_curve",
    "outcomes",
    "reliability_diagram",
    "smoothed",
    "training_curves",
]
