"""What a run of ``ama adapt`` leaves to be read: the table of ratios, the comparison of ε, the plot of the course."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from reproalign.ama.adapt.settings import AdaptSettings
from reproalign.ama.parts import Parts
from reproalign.ama.ratios import constraint_weights, reachable
from reproalign.common.evaluation.plots import MeanCurve, comparison

LINES = 12  # ratios of so many groups are drawn one by one; of more, the first and the last and some between


def ratio_table(parts: Parts, settings: AdaptSettings, epsilon: float, ratios: Sequence[float] | None = None) -> Table:
    """Lay out the groups: layers, what ε lets them reach, and their ratios if there are any."""
    weights = constraint_weights(parts.layer_shares, settings.constraint)
    ranges = reachable(settings.base, epsilon, weights, settings.normalisation)
    shown = ratios or [settings.base] * len(parts.names)
    mean, layer_mean = parts.means(list(shown))
    title = f"ratios on pre, mean {mean:.6g}, over layers {layer_mean:.6g}, ε {epsilon:g}"
    table = Table("group", "layers", "reachable", *(["ratio"] if ratios else []), title=title, header_style="bold")
    for name, share, (low, high), ratio in zip(parts.names, parts.layer_shares, ranges, shown, strict=True):
        table.add_row(name, f"{share:g}", f"{low:.4f} to {high:.4f}", *([f"{ratio:.6f}"] if ratios else []))
    return table


def epsilon_table(found: Mapping[float, Mapping[str, Any]], criterion: str, chosen: float) -> Table:
    """Compare the values of ε by the held-out criterion."""
    table = Table("ε", criterion, "ratios", "", title="held-out criterion", header_style="bold")
    for epsilon, entry in found.items():
        ratios = ", ".join(f"{ratio:.4f}" for ratio in list(entry["ratios"].values())[:6])
        table.add_row(f"{epsilon:g}", f"{entry['criterion']:.6f}", ratios, "chosen" if epsilon == chosen else "")
    return table


def draw_course(rows: Sequence[Mapping[str, Any]], names: Sequence[str], path: Path, across: str) -> None:
    """Draw the objective and the ratios over steps, one curve for each ε.

    Args:
        rows: of ``metrics.jsonl``.
        names: of the groups.
        path: of the PNG.
        across: what a step is.
    """
    measured = next((key for key in ("loss", "reward") if any(key in row for row in rows)), None)
    if measured is None:
        return
    stride = max(1, -(-len(names) // LINES))
    drawn = names[::stride]
    panels: dict[str, dict[str, MeanCurve]] = {measured: {}, "ratio on pre": {}}
    several = len({row["epsilon"] for row in rows if "epsilon" in row}) > 1
    for epsilon in dict.fromkeys(row["epsilon"] for row in rows if "epsilon" in row):
        own = [row for row in rows if row.get("epsilon") == epsilon]
        behind = f", ε {epsilon:g}" if several else ""
        panels[measured][f"{measured}{behind}"] = _curve(own, measured)
        if not several or epsilon == rows[-1]["epsilon"]:
            panels["ratio on pre"] |= {f"{name}{behind}": _curve(own, f"ratio/{name}") for name in drawn}
    comparison(panels, path, across=across)


def _curve(rows: Sequence[Mapping[str, Any]], key: str) -> MeanCurve:
    points = [(row["step"], float(row[key])) for row in rows if key in row]
    values = [value for _, value in points]
    return MeanCurve([step for step, _ in points], values, values, values)
