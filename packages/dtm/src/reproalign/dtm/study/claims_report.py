"""What ``dtm study claims`` shows beside the claims: means over the nine benchmarks, and base rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from reproalign.dtm.study.scores import ANY, Scores, mean_score


def means(scores: Scores, paper: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return setting, method, and the mean over the nine benchmarks with its error, of rows that have all nine."""
    found = []
    for setting, rows in scores.items():
        for method, row in rows.items():
            mean = mean_score(row, paper["nine"])
            if mean:
                found.append({"setting": setting, "method": method, "mean": mean.value, "stderr": mean.stderr})
    return found


def means_table(ours: Sequence[Mapping[str, Any]], published: Sequence[Mapping[str, Any]]) -> Table:
    """Return the means beside those of the paper."""
    table = Table("setting", "method", title="mean over nine benchmarks", header_style="bold", title_style="bold")
    for name in ("published", *(["here", "± stderr"] if ours else [])):
        table.add_column(name, justify="right")
    known = {(row["setting"], row["method"]): row["mean"] for row in published}
    for row in ours or published:
        value = known.get((row["setting"], row["method"]))
        setting = "" if row["setting"] == ANY else row["setting"]
        cells = [setting, row["method"], "" if value is None else f"{value:.2f}"]
        if ours:
            cells += [f"{row['mean']:.2f}", "" if row["stderr"] is None else f"{row['stderr']:.2f}"]
        table.add_row(*cells)
    return table


def base_rows(scores: Scores, paper: Mapping[str, Any], tolerance: float) -> list[dict[str, Any]]:
    """Compare the base models of stated settings with the published rows, benchmark by benchmark.

    A suite may be called the paper's only if all three base models give the published numbers.

    Returns:
        setting, benchmark, published, here, difference, and whether that is within ``tolerance``.
    """
    found = []
    for setting, rows in paper["results"].items():
        row = scores.get(setting, {}).get("base", {})
        for name in paper["nine"] if "base" in rows else ():
            if name in row:
                gap = row[name].value - rows["base"][name]
                found.append(
                    {
                        "setting": setting,
                        "benchmark": name,
                        "published": rows["base"][name],
                        "here": row[name].value,
                        "difference": gap,
                        "agrees": abs(gap) <= tolerance,
                    }
                )
    return found


def base_sentence(rows: Sequence[Mapping[str, Any]], paper: Mapping[str, Any], tolerance: float) -> str:
    """Say whether the suite that gave ``rows`` may be called the paper's."""
    settings = [name for name, entries in paper["results"].items() if "base" in entries]
    needed = {(setting, name) for setting in settings for name in paper["nine"]}
    agreeing = {(row["setting"], row["benchmark"]) for row in rows if row["agrees"]}
    if needed <= agreeing:
        return f"the suite gives the published base rows (within {tolerance:g} points): it may be called the paper's"
    absent = len(needed - {(row["setting"], row["benchmark"]) for row in rows})
    off = sum(not row["agrees"] for row in rows)
    return (
        f"the suite may not be called the paper's: of {len(needed)} numbers of the three base models {len(agreeing)} "
        f"agree within {tolerance:g} points, {off} do not, {absent} were not given"
    )
