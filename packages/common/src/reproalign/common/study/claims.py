"""The claims of ``paper.yaml`` held against the paper's own numbers and against ours, in four forms.

A paper brings its kinds of claims, which make a :class:`~reproalign.common.study.findings.Finding` of an entry; what is
said, printed and written of findings is the same for all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from reproalign.common.errors import UserError, choose
from reproalign.common.files import csv_text, write_json, write_text
from reproalign.common.records import Run
from reproalign.common.study.findings import Effect, Finding

Claim = Mapping[str, Any]  # an entry of paper.yaml
SHOWN = 12  # effects of a claim in tables; claims.json and claims.csv have all


@dataclass(frozen=True)
class CheckedClaim:
    """One claim with its findings.

    Attributes:
        name: its id in ``paper.yaml``.
        claim: its entry there.
        paper: what the paper's own numbers say.
        ours: what the given results say; None if none were given.
    """

    name: str
    claim: Claim
    paper: Finding[Any]
    ours: Finding[Any] | None


def check_claims(
    asked: Sequence[str] | None,
    claims: Mapping[str, Claim],
    on_paper: Callable[[Claim], Finding[Any]],
    on_ours: Callable[[Claim], Finding[Any]] | None,
) -> list[CheckedClaim]:
    """Check the claims that are asked for, or all.

    Args:
        asked: names of claims; None or empty: all.
        claims: of ``paper.yaml``.
        on_paper: checks a claim on the paper's own numbers.
        on_ours: likewise on the given results; None if none were given.

    Raises:
        UserError: for a claim that there is not.
    """
    names = [choose("claim", name, claims) for name in asked or claims]
    return [
        CheckedClaim(name, claims[name], on_paper(claims[name]), on_ours(claims[name]) if on_ours else None)
        for name in names
    ]


def refuse_insufficient(checked: Sequence[CheckedClaim], what: str) -> None:
    """Refuse results in which a claim has no instance.

    Args:
        checked: claims that were asked for by name.
        what: was given: results, runs.

    Raises:
        UserError: saying what is missing.
    """
    for entry in checked:
        if entry.ours and not entry.ours.effects:
            raise UserError(f"claim {entry.name}: the {what} do not suffice: {'; '.join(entry.ours.missing)}")


def verdict(finding: Finding[Any]) -> str:
    """Return the verdict in words: ``supported, 9 of 9; 7 of 9 clear``."""
    if not finding.effects:
        return f"not testable: {'; '.join(finding.missing) or 'nothing to compare'}"
    parts = [f"{finding.verdict}, {finding.holds}"]
    failing = [effect.label for effect in finding.effects if not effect.met]
    if failing and finding.met:
        parts[0] += f" (not {', '.join(failing)})"
    known = [effect.clear for effect in finding.effects if effect.clear is not None]
    parts += [f"{sum(known)} of {len(known)} clear"] if known else []
    return "; ".join([*parts, *(f"not tested: {text}" for text in finding.missing)])


def claims_table(checked: Sequence[CheckedClaim]) -> Table:
    """Return the table for the terminal."""
    ours = any(entry.ours for entry in checked)
    table = Table(
        Column("claim", overflow="fold"), "the paper's own numbers", "verdict", header_style="bold", show_lines=True
    )
    if ours:
        table.add_column("these results")
    for entry in checked:
        cells = [f"{entry.name} {entry.claim['claim']}", _effects(entry.paper), verdict(entry.paper)]
        if entry.ours:
            cells.append("\n".join(filter(None, [_effects(entry.ours), verdict(entry.ours)])))
        table.add_row(*cells)
    return table


def claims_markdown(checked: Sequence[CheckedClaim]) -> str:
    """Return the claims as a Markdown table; "limited by" is what ``paper.yaml`` says of the published numbers."""
    ours = any(entry.ours for entry in checked)
    heads = ["id", "claim", "published", "borne out by the paper's numbers", "limited by"]
    heads += ["here", "borne out here"] if ours else []
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for entry in checked:
        published = entry.claim["published"]
        limits = "; ".join([*published.get("not", []), *filter(None, [published.get("note")])])
        cells = [entry.name, entry.claim["claim"], *_with_notes(entry.paper), limits]
        cells += _with_notes(entry.ours) if entry.ours else []
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def claims_csv(checked: Sequence[CheckedClaim]) -> str:
    """Return one line for each instance of a claim, below a header; of the paper's numbers and of ours."""
    rows = list(_rows(checked))
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return csv_text(columns, ([row[name] for name in columns] for row in rows))


def claims_json(checked: Sequence[CheckedClaim]) -> list[dict[str, Any]]:
    """Return the claims as plain values, with what ``paper.yaml`` says of where they stand."""
    return [
        {
            "id": entry.name,
            **{key: entry.claim[key] for key in ("claim", "figures", "where", "published") if key in entry.claim},
            "paper": _plain(entry.paper),
            "ours": _plain(entry.ours) if entry.ours else None,
        }
        for entry in checked
    ]


def report_claims(checked: Sequence[CheckedClaim], run: Run, console: Console, beside: Mapping[str, Any]) -> None:
    """Print the claims, record their verdicts, and write ``claims.json``, ``claims.csv`` and ``claims.md``.

    Args:
        checked: the claims.
        run: whose folder and record take them.
        console: to print on.
        beside: further entries of ``claims.json``.
    """
    console.print(claims_table(checked))
    write_json(run.dir / "claims.json", {"claims": claims_json(checked), **beside})
    write_text(run.dir / "claims.csv", claims_csv(checked))
    write_text(run.dir / "claims.md", claims_markdown(checked))
    run.set_metrics({entry.name: verdict(entry.ours or entry.paper) for entry in checked})


def _effects(finding: Finding[Any]) -> str:
    """Return the effects in a line, with their mean where there are more than two."""
    texts = [effect.text for effect in finding.effects]
    line = (" " if all(text[0] in "+-" for text in texts) else "; ").join(texts[:SHOWN])
    line += f"; and {len(texts) - SHOWN} more" if len(texts) > SHOWN else ""
    return f"{line} (mean {finding.mean:+.2f})" if finding.mean is not None and len(texts) > 2 else line


def _with_notes(finding: Finding[Any]) -> list[str]:
    return ["; ".join(filter(None, [_effects(finding), *finding.notes])), verdict(finding)]


def _rows(checked: Sequence[CheckedClaim]) -> Iterator[dict[str, Any]]:
    for entry in checked:
        for whose, finding in (("paper", entry.paper), ("ours", entry.ours)):
            for effect in finding.effects if finding else ():
                found = {**effect.values(), "met": effect.met, "clear": effect.clear}
                fields = {name: _field(value) for name, value in found.items()}
                yield {"claim": entry.name, "numbers": whose, "instance": effect.label, **fields}


def _field(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.6g}" if isinstance(value, float) else value


def _plain(finding: Finding[Any]) -> dict[str, Any]:
    return {
        "verdict": finding.verdict,
        "met": finding.met,
        "of": len(finding.effects),
        "mean": finding.mean,
        "effects": [_plain_effect(effect) for effect in finding.effects],
        "missing": finding.missing,
        "notes": finding.notes,
    }


def _plain_effect(effect: Effect) -> dict[str, Any]:
    numbers = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value  # JSON has no infinity
        for name, value in effect.values().items()
    }
    return {"instance": effect.label, **numbers, "met": effect.met, "clear": effect.clear}
