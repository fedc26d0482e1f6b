"""What ``ama study claims`` shows: in the terminal, and as Markdown, JSON, CSV and a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Column, Table

from reproalign.ama.study.findings import Effect, Finding
from reproalign.common.files import csv_text

_SHOWN = 12  # effects of a claim in the terminal; the files have all


@dataclass(frozen=True)
class Checked:
    """One claim with its findings.

    Attributes:
        name: its id in ``paper.yaml``.
        claim: its entry there.
        paper: what the paper's own series say.
        ours: what the given results say; None if none were given.
    """

    name: str
    claim: Mapping[str, Any]
    paper: Finding
    ours: Finding | None


def verdict(finding: Finding) -> str:
    """Return the verdict in words: ``supported, 9 of 9; 7 clear``."""
    if not finding.effects:
        return f"not testable: {'; '.join(finding.missing) or 'nothing to compare'}"
    parts = [f"{finding.verdict}, {finding.met} of {len(finding.effects)}"]
    failing = [effect.label for effect in finding.effects if not effect.met]
    if failing and finding.met:
        parts[0] += f" (not {', '.join(failing)})"
    parts.append(f"{sum(effect.clear for effect in finding.effects)} clear")
    return "; ".join([*parts, *(f"not tested: {text}" for text in finding.missing)])


def effect_text(finding: Finding, limit: int | None = None) -> str:
    """Return the effects in a line, with their intervals; the first ``limit`` of them."""
    shown = [_with_interval(effect) for effect in finding.effects[:limit]]
    rest = len(finding.effects) - len(shown)
    return "; ".join([*shown, *([f"and {rest} more"] if rest else [])])


def claims_table(checked: Sequence[Checked]) -> Table:
    """Return the table for the terminal."""
    ours = any(entry.ours for entry in checked)
    table = Table(
        Column("claim", overflow="fold"), "the paper's own numbers", "verdict", header_style="bold", show_lines=True
    )
    if ours:
        table.add_column("these results")
    for entry in checked:
        cells = [f"{entry.name} {entry.claim['claim']}", effect_text(entry.paper, _SHOWN), verdict(entry.paper)]
        if entry.ours:
            cells.append("\n".join(filter(None, [effect_text(entry.ours, _SHOWN), verdict(entry.ours)])))
        table.add_row(*cells)
    return table


def claims_markdown(checked: Sequence[Checked]) -> str:
    """Return the claims as a Markdown table."""
    ours = any(entry.ours for entry in checked)
    heads = ["id", "claim", "published", "borne out by the paper's numbers"]
    heads += ["here", "borne out here"] if ours else []
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for entry in checked:
        cells = [entry.name, entry.claim["claim"]]
        for finding in (entry.paper, *([entry.ours] if entry.ours else [])):
            cells += ["; ".join(filter(None, [effect_text(finding, _SHOWN), *finding.notes])), verdict(finding)]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def claims_json(checked: Sequence[Checked]) -> list[dict[str, Any]]:
    """Return the claims as plain values."""
    return [
        {
            "id": entry.name,
            "claim": entry.claim["claim"],
            "figures": entry.claim["figures"],
            "published": entry.claim["published"],
            "paper": _plain(entry.paper),
            "ours": _plain(entry.ours) if entry.ours else None,
        }
        for entry in checked
    ]


def claims_csv(checked: Sequence[Checked]) -> str:
    """Return one line for each instance of a claim, with a header; of the paper's numbers and of ours."""
    header = ["claim", "numbers", "instance", "metric", "value", "low", "high", "floor", "met", "clear"]
    return csv_text(header, (row for entry in checked for row in _rows(entry)))


def _rows(entry: Checked) -> Iterator[list[Any]]:
    for whose, finding in (("paper", entry.paper), ("ours", entry.ours)):
        for effect in finding.effects if finding else ():
            interval = effect.interval
            ends = (interval.low, interval.high) if interval else (None, None)
            numbers = ["" if value is None else f"{value:.6g}" for value in (effect.value, *ends, effect.floor)]
            flags = [str(effect.met).lower(), str(effect.clear).lower()]
            yield [entry.name, whose, effect.label, effect.metric, *numbers, *flags]


def _with_interval(effect: Effect) -> str:
    if effect.interval is None:
        return effect.text
    ends = [f"{end:+.3g}" if math.isfinite(end) else "beyond" for end in (effect.interval.low, effect.interval.high)]
    return f"{effect.text} [{ends[0]}, {ends[1]}]"


def _plain(finding: Finding) -> dict[str, Any]:
    return {
        "verdict": finding.verdict,
        "met": finding.met,
        "of": len(finding.effects),
        "effects": [
            {
                "instance": effect.label,
                "metric": effect.metric,
                "value": _finite(effect.value),
                "beyond": effect.value == math.inf,
                "low": _finite(effect.interval.low) if effect.interval else None,
                "high": _finite(effect.interval.high) if effect.interval else None,
                "above_zero": effect.interval.above_zero if effect.interval else None,
                "floor": effect.floor,
                "met": effect.met,
                "clear": effect.clear,
            }
            for effect in finding.effects
        ],
        "missing": finding.missing,
        "notes": finding.notes,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
