"""What ``dtm study claims`` shows: claims, means over the nine benchmarks, and base rows; in four forms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Column, Table

from reproalign.common.files import csv_text
from reproalign.dtm.study.findings import CLEAR, Finding
from reproalign.dtm.study.scores import ANY, Scores, mean_score


@dataclass(frozen=True)
class Checked:
    """One claim with its findings.

    Attributes:
        name: in ``paper.yaml``.
        claim: its entry there.
        paper: what the paper's own numbers say.
        ours: what the given results say; None if none were given.
    """

    name: str
    claim: Mapping[str, Any]
    paper: Finding
    ours: Finding | None


def verdict(finding: Finding) -> str:
    """Return the verdict in words: ``yes, 9 of 9; none reaches 2 standard errors``."""
    if not finding.effects:
        return f"not checked ({finding.missing or 'nothing to compare'})"
    parts = [f"{finding.verdict}, {finding.met} of {len(finding.effects)}"]
    failing = [effect.label for effect in finding.effects if not effect.met]
    if failing and finding.met:
        parts[0] += f" (not {', '.join(failing)})"
    known = [effect for effect in finding.effects if effect.z is not None]
    if known:
        clear = sum(abs(effect.z or 0.0) >= CLEAR for effect in known)
        of = "" if len(known) == len(finding.effects) else f" of {len(known)} with known errors"
        parts.append(f"{clear or 'none'}{of} {'reaches' if clear < 2 else 'reach'} {CLEAR:g} standard errors")
    return "; ".join([*parts, *finding.notes, *([finding.missing] if finding.missing else [])])


def effect_text(finding: Finding) -> str:
    """Return the effects in a line, with their mean where there are more than two."""
    separator = " " if all(effect.text[0] in "+-" for effect in finding.effects) else "; "
    text = separator.join(effect.text for effect in finding.effects)
    return f"{text} (mean {finding.mean:+.2f})" if finding.mean is not None and len(finding.effects) > 2 else text


def claims_table(checked: Sequence[Checked]) -> Table:
    """Return the table for the terminal."""
    ours = any(entry.ours for entry in checked)
    table = Table(
        Column("claim", overflow="fold"), "published", "the paper's own numbers", header_style="bold", show_lines=True
    )
    if ours:
        table.add_column("these results")
    for entry in checked:
        cells = [f"{entry.claim['claim']}\n[dim]{entry.name}[/]", effect_text(entry.paper), verdict(entry.paper)]
        if entry.ours:
            cells.append("\n".join(filter(None, [effect_text(entry.ours), verdict(entry.ours)])))
        table.add_row(*cells)
    return table


def claims_markdown(checked: Sequence[Checked]) -> str:
    """Return the claims as a Markdown table."""
    ours = any(entry.ours for entry in checked)
    heads = ["claim", "published effect", "borne out by the paper's numbers"]
    heads += ["effect here", "borne out here"] if ours else []
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for entry in checked:
        cells = [entry.claim["claim"], effect_text(entry.paper), verdict(entry.paper)]
        if ours and entry.ours:
            cells += [effect_text(entry.ours), verdict(entry.ours)]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def claims_json(checked: Sequence[Checked]) -> list[dict[str, Any]]:
    """Return the claims as plain values."""
    return [
        {
            "name": entry.name,
            "claim": entry.claim["claim"],
            "published": entry.claim["published"],
            "paper": _plain(entry.paper),
            "ours": _plain(entry.ours) if entry.ours else None,
        }
        for entry in checked
    ]


def claims_csv(checked: Sequence[Checked]) -> str:
    """Return one line for each instance of a claim, with a header; of the paper's numbers and of ours."""
    rows = []
    for entry in checked:
        for whose, finding in (("paper", entry.paper), ("ours", entry.ours)):
            for effect in finding.effects if finding else ():
                value = "" if effect.value is None else f"{effect.value:.6g}"
                z = "" if effect.z is None else f"{effect.z:.6g}"
                rows.append([entry.name, whose, effect.label, value, z, str(effect.met).lower()])
    return csv_text(["claim", "numbers", "instance", "difference", "standard_errors", "met"], rows)


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


def _plain(finding: Finding) -> dict[str, Any]:
    return {
        "verdict": finding.verdict,
        "met": finding.met,
        "of": len(finding.effects),
        "mean": finding.mean,
        "effects": [
            {"instance": effect.label, "difference": effect.value, "standard_errors": effect.z, "met": effect.met}
            for effect in finding.effects
        ],
        "missing": finding.missing,
        "notes": finding.notes,
    }
