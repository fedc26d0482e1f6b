"""``ama study claims``: every claim of the paper on its own series, and on a set of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reproalign.ama.points import Point
from reproalign.ama.study.check import Check
from reproalign.ama.study.claim_kinds import run_check
from reproalign.ama.study.config import ClaimsConfig
from reproalign.ama.study.findings import Effect
from reproalign.ama.study.fronts import claim_panels
from reproalign.ama.study.plots import draw_claims, draw_fronts
from reproalign.ama.study.published import published_points
from reproalign.ama.study.reading import add_fingerprints, measured_floor, read_results
from reproalign.ama.study.results import Results, make_results
from reproalign.common.console import result_console, say
from reproalign.common.errors import UserError
from reproalign.common.invocation import Invocation
from reproalign.common.records import Run
from reproalign.common.records.paper import load_paper
from reproalign.common.study.claims import CheckedClaim, check_claims, refuse_insufficient, report_claims
from reproalign.common.study.findings import Finding, joined

PACKAGE = "reproalign.ama"


def claims(config: ClaimsConfig, invocation: Invocation) -> None:
    """Check the claims of ``paper.yaml``; without results on the paper's own series alone.

    Written are ``claims.json``, ``claims.csv`` (one line for each instance), ``claims.md``, and in ``plots`` the shares
    of instances borne out and the fronts, the paper's beside ours.

    Raises:
        UserError: for results that cannot be read, or do not suffice for a claim that was asked for by name.
    """
    _check(config)
    paper = load_paper(PACKAGE)
    points = read_results(config.results, config.tasks, config.rule)
    published = make_results(
        published_points(), _floor("published", paper, []), resamples=config.resamples, seed=config.seed
    )
    ours = None
    if points:
        floor = _floor(config.floor, paper, points)
        ours = make_results(points, floor, resamples=config.resamples, seed=config.seed)
    rules: dict[str, Any] = {"judge": config.judge, "confidence": config.confidence}
    checked = check_claims(
        config.claims,
        paper["claims"],
        lambda claim: check_claim(claim, published, **rules),
        (lambda claim: check_claim(claim, ours, **rules)) if ours else None,
    )
    _check_sufficient(config, checked)
    with Run.open(invocation) as run:
        add_fingerprints(run, config.results)
        _report(checked, published, ours, run)


def check_claim(
    claim: Mapping[str, Any], results: Results, judge: str = "front", confidence: float = 0.95
) -> Finding[Effect]:
    """Check one claim.

    Args:
        claim: of ``paper.yaml``.
        results: points of one tensor rule.
        judge: how sweeps are compared: front or hypervolume.
        confidence: of the intervals.

    Raises:
        UserError: for a kind that there is not, or points at one ratio that differ.
    """
    return joined(run_check(Check(results, entry, confidence), judge) for entry in claim["checks"])


def _check(config: ClaimsConfig) -> None:
    if config.floor == "measured" and not config.results:
        raise UserError("floor=measured is about results; give results=[points.csv,…] too")


def _floor(kind: str, paper: Mapping[str, Any], points: Sequence[Point]) -> dict[str, float]:
    if kind == "measured":
        return measured_floor(points)
    return dict(paper["noise"]["floor"]) if kind == "published" else {}


def _check_sufficient(config: ClaimsConfig, checked: Sequence[CheckedClaim]) -> None:
    """Refuse results that suffice for no claim, or not for one that was asked for by name.

    Raises:
        UserError: saying what is missing.
    """
    refuse_insufficient(checked if config.claims else [], "results")
    ours = [entry.ours for entry in checked if entry.ours]
    if ours and not any(finding.effects for finding in ours):
        raise UserError(
            "these results suffice for no claim; give points with the paper's columns, such as method, algorithm "
            "(rsf, dpo, ppo), alpha, reward and reading"
        )


def _report(checked: Sequence[CheckedClaim], published: Results, ours: Results | None, run: Run) -> None:
    console = result_console()
    notes = ours.notes if ours else []
    report_claims(checked, run, console, {"notes": notes})
    for note in notes:
        console.print(f"- {note}")
    draw_claims(checked, run.dir / "plots" / "claims.png")
    draw_fronts(claim_panels(published, ours), run.dir / "plots" / "fronts.png")
    say(f"record, claims.json, claims.csv, claims.md and plots: {run.dir}")
