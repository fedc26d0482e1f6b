"""The paper's claims, which ``paper.yaml`` holds as data, checked on a set of scores.

The kinds, with m the number of instances that a claim makes and k those that the scores bear out:

    above, not_below, below   s(left, b) > s(right, b), ≥, <, for each benchmark b (and pair)
    mean_above                mean_b s(left, b) > mean_b s(right, b), for each of ``right``
    best                      s(left, b) > s(other, b) for all others in ``among``, for each benchmark b
    second                    exactly one other is above on at least ``at_least`` benchmarks, for each of ``left``
    fall                      the last value of a curve is below its highest, for each curve

A difference d of two scores with standard errors s, s' over items has z = d / √(s² + s'²), as if the two were measured
on different items: |z| ≥ 2 is called clear.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from reproalign.common.errors import UserError
from reproalign.common.study.findings import Finding
from reproalign.dtm.study.claim_kinds import (
    CONDITIONS,
    benchmarks,
    beside,
    best,
    differences,
    fall,
    mean_above,
    second,
)
from reproalign.dtm.study.findings import Curve, Effect
from reproalign.dtm.study.scores import Scores


def check_claim(
    claim: Mapping[str, Any], paper: Mapping[str, Any], scores: Scores, curves: Mapping[str, Curve]
) -> Finding[Effect]:
    """Check one claim.

    Args:
        claim: of ``paper.yaml``.
        paper: all of it: methods, benchmarks, ``nine``, ``categories``.
        scores: setting -> method -> benchmark.
        curves: by the names of ``paper.yaml``.

    Raises:
        UserError: for a kind that there is not.
    """
    kind = claim["kind"]
    if kind == "fall":
        return fall(claim, scores, curves)
    on = benchmarks(claim["across"], paper)
    checks = {"mean_above": mean_above, "best": best, "second": second}
    if kind not in checks and kind not in CONDITIONS:
        raise UserError(f"paper.yaml: unknown kind of claim '{kind}'")
    finding = checks.get(kind, differences)(claim, paper, scores, on)
    return replace(finding, notes=[*finding.notes, *beside(claim, paper, scores)])
