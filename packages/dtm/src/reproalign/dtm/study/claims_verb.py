"""``dtm study claims``: every claim of the paper on its own numbers, and on a set of results."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reproalign.common.console import result_console, say
from reproalign.common.errors import UserError
from reproalign.common.files import sha256_json
from reproalign.common.invocation import Invocation
from reproalign.common.records import Run
from reproalign.common.records.handed_on import intact
from reproalign.common.records.paper import load_paper
from reproalign.common.study.claims import CheckedClaim, check_claims, report_claims
from reproalign.dtm.study.claims import check_claim
from reproalign.dtm.study.claims_report import base_rows, base_sentence, means, means_table
from reproalign.dtm.study.config import ClaimsConfig
from reproalign.dtm.study.findings import Curve, published_curves
from reproalign.dtm.study.plots import effects
from reproalign.dtm.study.scores import ANY, Scores, merged, published_scores, read_runs, read_table

PACKAGE = "reproalign.dtm"
CURVES = "curves.json"


def claims(config: ClaimsConfig, invocation: Invocation) -> None:
    """Check the claims of ``paper.yaml``; without results on the paper's own numbers alone.

    Written are ``claims.json``, ``claims.csv`` (one line for each instance), ``claims.md`` and ``plots/claims.png``.

    Raises:
        UserError: for results that cannot be read, or do not suffice for a claim that was asked for by name.
    """
    paper = load_paper(PACKAGE)
    scores, curves = read_results(config, paper)
    published, own_curves = published_scores(paper), published_curves(paper)
    checked = check_claims(
        config.claims,
        paper["claims"],
        lambda claim: check_claim(claim, paper, published, own_curves),
        (lambda claim: check_claim(claim, paper, scores, curves)) if scores or curves else None,
    )
    _check_sufficient(config, checked, paper, scores)
    with Run.open(invocation) as run:
        for key, value in (("results", scores), ("curves", curves)):
            if value:
                run.add_fingerprint("data", key, sha256_json(json.loads(json.dumps(value, default=vars))))
        _report(config, checked, paper, scores, run)


def read_results(config: ClaimsConfig, paper: Mapping[str, Any]) -> tuple[Scores, dict[str, Curve]]:
    """Read the scores and curves that were given, maybe none.

    Raises:
        UserError: for what cannot be read.
    """
    tables = [read_table(config.results, paper)] if config.results else []
    scores = merged(*tables, read_runs(config.runs, paper)) if tables or config.runs else {}
    return scores, _read_curves(config.curves, paper) if config.curves else {}


def _read_curves(folder: str, paper: Mapping[str, Any]) -> dict[str, Curve]:
    """Read curves by benchmark; each stands for the first published curve of its benchmark."""
    path = Path(folder).expanduser() / CURVES
    try:
        found = json.loads(intact(path).read_text(encoding="utf-8"))["curves"]
        curves = {name: Curve(entry["fractions"], entry["values"]) for name, entry in found.items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"curves={folder}: no {CURVES} of `dtm study curves` there; give the folder of a run"
        ) from error
    stands: dict[str, str] = {}
    for name, entry in paper["curves"].items():
        if entry["benchmark"] in curves:
            stands.setdefault(entry["benchmark"], name)
    return {name: curves[benchmark] for benchmark, name in stands.items()}


def _check_sufficient(
    config: ClaimsConfig, checked: list[CheckedClaim], paper: Mapping[str, Any], scores: Scores
) -> None:
    """Refuse results that lack what was asked for by name, or that suffice for no claim and no mean.

    Raises:
        UserError: saying what is missing.
    """
    asked = [entry for entry in checked if entry.ours and config.claims]
    for entry in asked:
        if entry.ours and entry.ours.missing:
            raise UserError(f"claim {entry.name}: the results do not suffice: {'; '.join(entry.ours.missing)}")
    ours = [entry for entry in checked if entry.ours]
    if ours and not any(entry.ours and entry.ours.effects for entry in ours) and not means(scores, paper):
        raise UserError(
            "these results suffice for no claim; rows are called "
            f"{', '.join(method for methods in paper['methods'].values() for method in methods)}"
        )


def _report(
    config: ClaimsConfig, checked: list[CheckedClaim], paper: Mapping[str, Any], scores: Scores, run: Run
) -> None:
    console = result_console()
    averages, own = means(scores, paper), means(published_scores(paper), paper)
    console.print(means_table(averages, own))
    agreement = base_rows(scores, paper, config.tolerance)
    if agreement:
        console.print(base_sentence(agreement, paper, config.tolerance))
    known = {method for methods in paper["methods"].values() for method in methods}
    strange = sorted({method for rows in scores.values() for method in rows} - known)
    if strange:
        say(f"- no claim is about {', '.join(strange)}")
    if ANY in scores:
        console.print("- rows without a setting stand for the setting of every claim")
    report_claims(checked, run, console, {"means": averages or own, "base_rows": agreement})
    effects(checked, run.dir / "plots" / "claims.png")
    say(f"record, claims.json, claims.csv, claims.md and plot: {run.dir}")
