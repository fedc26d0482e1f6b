"""``more-rm study claims``: every claim of the paper on its own numbers, and on those of runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reproalign.common.console import result_console
from reproalign.common.invocation import Invocation
from reproalign.common.records import Run
from reproalign.common.records.paper import load_paper
from reproalign.common.study.claims import check_claims, refuse_insufficient, report_claims
from reproalign.common.study.findings import Finding, joined
from reproalign.more.study.claim_kinds import run_check
from reproalign.more.study.config import ClaimsConfig
from reproalign.more.study.findings import Check, Effect
from reproalign.more.study.measured import measured_results
from reproalign.more.study.results import ResultKey, Value, published_results
from reproalign.more.study.runs import read_runs

PACKAGE = "reproalign.more"


def claims(config: ClaimsConfig, invocation: Invocation) -> None:
    """Check the claims; without runs on the paper's own numbers alone.

    Written are ``claims.json``, ``claims.csv`` (one line for each instance) and ``claims.md``. An instance is clear if
    it is two standard errors away from 0: of the results, or of an ECE's estimator where numbers have none.

    Raises:
        UserError: for runs that cannot be read, or do not suffice for a claim that was asked for by name.
    """
    paper = load_paper(PACKAGE)
    runs = read_runs(config.runs, paper["bases"])
    ours = measured_results(runs, config, paper["bases"])
    checked = check_claims(
        config.claims,
        paper["claims"],
        lambda claim: check_claim(claim, published_results(), paper["noise"]),
        (lambda claim: check_claim(claim, ours, paper["noise"])) if runs else None,
    )
    refuse_insufficient(checked if config.claims else [], "runs")
    with Run.open(invocation) as run:
        console = result_console()
        report_claims(checked, run, console, {})
        console.print(f"record, claims.json, claims.csv and claims.md: {run.dir}")


def check_claim(
    claim: Mapping[str, Any], results: Mapping[ResultKey, Value], noise: Mapping[str, Any]
) -> Finding[Effect]:
    """Check one claim of ``paper.yaml`` on results.

    Raises:
        UserError: for a kind that there is not.
    """
    return joined(run_check(Check(entry, results, noise)) for entry in claim["checks"])
