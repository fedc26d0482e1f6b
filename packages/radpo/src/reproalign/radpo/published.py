"""The published numbers: the paper's tables, its figures as read, and its authors' rebuttal (``published.csv``).

Columns: figure; data and model; metric, as runs record it; loss, second_form, measure, mu, alpha: of the run; seeds;
statistic: of the curve; value, plus_minus, unit; source: P printed, D digitised figure, R rebuttal repository, derived.
``paper.yaml`` says how exactly they were read.
"""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import files

MODELS = ("pythia-1.4b", "pythia-2.8b")  # whose sweeps over alpha are known
SWEEPS = ("4", "10", "12")  # their figures; a letter names the panel


@cache
def published() -> tuple[dict[str, str], ...]:
    """Return all rows."""
    text = files("reproalign.radpo").joinpath("published.csv").read_text(encoding="utf-8")
    return tuple(csv.DictReader(text.splitlines()))


def sweep(model: str, metric: str, loss: str, measure: str, mu: str) -> dict[float, float]:
    """Return one line of a figure of the paper: alpha -> value; {} if there is none.

    Args:
        model: out of MODELS.
        metric: as runs record it.
        loss: ``tdpo`` or ``ra-dpo``, the second form.
        measure: ``cvar`` or ``entropic``; empty for TDPO.
        mu: as the paper has it; empty for TDPO.
    """
    wanted = {"model": model, "metric": metric, "loss": loss, "measure": measure, "mu": mu}
    return {
        float(row["alpha"]): float(row["value"])
        for row in published()
        if row["figure"].rstrip("abcdef") in SWEEPS and row["value"] and wanted.items() <= row.items()
    }
