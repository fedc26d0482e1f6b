"""``more-rm study claims``: every claim of the paper on its own numbers, and on those of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from reproalign.common.console import result_console
from reproalign.common.errors import UserError, choose
from reproalign.common.files import csv_text, write_json, write_text
from reproalign.common.invocation import Invocation
from reproalign.common.records import Run
from reproalign.common.records.paper import load_paper
from reproalign.more.study.claim_kinds import run_check
from reproalign.more.study.config import ClaimsConfig
from reproalign.more.study.findings import Check, Finding, joined
from reproalign.more.study.measured import measured_results
from reproalign.more.study.results import Key, Value, published_results
from reproalign.more.study.runs import read_runs

PACKAGE = "reproalign.more"


@dataclass(frozen=True)
class Checked:
    """A claim of ``paper.yaml`` with what the paper's own numbers say of it, and these results if any were given."""

    name: str
    claim: Mapping[str, Any]
    paper: Finding
    ours: Finding | None


def claims(config: ClaimsConfig, invocation: Invocation) -> None:
    """Check the claims; without runs on the paper's own numbers alone.

    Written are ``claims.json``, ``claims.csv`` (one line for each instance) and ``claims.md``. An instance is clear if
    it is two standard errors away from 0: of the results, or of an ECE's estimator where numbers have none.

    Raises:
        UserError: for runs that cannot be read, or do not suffice for a claim that was asked for by name.
    """
    paper = load_paper(PACKAGE)
    names = [choose("claim", name, paper["claims"]) for name in config.claims or paper["claims"]]
    runs = read_runs(config.runs, paper["bases"])
    ours = measured_results(runs, config, paper["bases"])
    checked = [
        Checked(
            name,
            paper["claims"][name],
            check_claim(paper["claims"][name], published_results(), paper["noise"]),
            check_claim(paper["claims"][name], ours, paper["noise"]) if runs else None,
        )
        for name in names
    ]
    for entry in checked if config.claims else ():
        if entry.ours and not entry.ours.effects:
            raise UserError(f"claim {entry.name}: the runs do not suffice: {'; '.join(entry.ours.missing)}")
    with Run.open(invocation) as run:
        console = result_console()
        console.print(claims_table(checked))
        write_json(run.dir / "claims.json", [_plain(entry) for entry in checked])
        write_text(run.dir / "claims.csv", claims_csv(checked))
        write_text(run.dir / "claims.md", claims_markdown(checked))
        run.set_metrics({entry.name: (entry.ours or entry.paper).holds for entry in checked})
        console.print(f"record, claims.json, claims.csv and claims.md: {run.dir}", highlight=False)


def check_claim(claim: Mapping[str, Any], results: Mapping[Key, Value], noise: Mapping[str, Any]) -> Finding:
    """Check one claim of ``paper.yaml`` on results.

    Raises:
        UserError: for a kind that there is not.
    """
    return joined(run_check(Check(entry, results, noise)) for entry in claim["checks"])


def claims_table(checked: Sequence[Checked]) -> Table:
    """Return the table for the terminal."""
    ours = any(entry.ours for entry in checked)
    heads = ["claim", "the paper's own numbers", "verdict", *(["these runs"] if ours else [])]
    table = Table(*heads, header_style="bold", show_lines=True)
    for entry in checked:
        cells = [f"{entry.name} {entry.claim['claim']}", _effects(entry.paper), _verdict(entry.paper)]
        table.add_row(*cells, *([f"{_effects(entry.ours)}\n{_verdict(entry.ours)}"] if entry.ours else []))
    return table


def claims_markdown(checked: Sequence[Checked]) -> str:
    """Return the claims as a Markdown table."""
    ours = any(entry.ours for entry in checked)
    heads = ["id", "claim", "published", "borne out by the paper's numbers", "limited by"]
    heads += ["here", "borne out here"] if ours else []
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for entry in checked:
        published = entry.claim["published"]
        limits = "; ".join([*published.get("not", []), *filter(None, [published.get("note")])])
        cells = [entry.name, entry.claim["claim"], _effects(entry.paper), _verdict(entry.paper), limits]
        cells += [_effects(entry.ours), _verdict(entry.ours)] if entry.ours else []
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def claims_csv(checked: Sequence[Checked]) -> str:
    """Return one line for each instance of a claim, of the paper's numbers and of ours."""
    rows = [
        [entry.name, whose, effect.label, effect.metric, f"{effect.value:.6g}", effect.error, effect.met, effect.clear]
        for entry in checked
        for whose, finding in (("paper", entry.paper), ("ours", entry.ours))
        for effect in (finding.effects if finding else ())
    ]
    return csv_text(["claim", "numbers", "instance", "metric", "value", "error", "met", "clear"], rows)


def _effects(finding: Finding) -> str:
    return "; ".join(effect.text for effect in finding.effects)


def _verdict(finding: Finding) -> str:
    if not finding.effects:
        return f"not testable: {'; '.join(finding.missing)}"
    failing = [effect.label for effect in finding.effects if not effect.met]
    known = [effect.clear for effect in finding.effects if effect.clear is not None]
    parts = [f"{finding.verdict}, {finding.holds}"]
    if failing and finding.met:
        parts[0] += f" (not {', '.join(failing)})"
    parts += [f"{sum(known)} of {len(known)} clear"] if known else []
    return "; ".join([*parts, *(f"not tested: {text}" for text in finding.missing)])


def _plain(entry: Checked) -> dict[str, Any]:
    def plain(finding: Finding | None) -> dict[str, Any] | None:
        if finding is None:
            return None
        effects = [{**vars(effect), "clear": effect.clear} for effect in finding.effects]
        return {"verdict": finding.verdict, "holds": finding.holds, "effects": effects, "missing": finding.missing}

    return {
        "id": entry.name,
        "claim": entry.claim["claim"],
        "where": entry.claim["where"],
        "published": entry.claim["published"],
        "paper": plain(entry.paper),
        "ours": plain(entry.ours),
    }
