"""The checks that claims are made of: what their instances are, and when one is borne out.

With r the reward and y a task's score, MA the sweep of one ratio, θ and θ_0 its ends:

    tax           r(θ) - r(θ_0) > 0 and y(θ) - y(θ_0) < 0
    margin        y(point) minus the MA line at equal or higher reward; beyond: no place of the line has so much reward
    hypervolume   of one sweep over another's - 1, above (r(θ_0), the worse of y(θ) and y(θ_0))
    order         hypervolumes of sweeps on shared ratios, each above the next
    part          the highest r(α) - r(θ) among α > 0 with y(α) > y(θ)
    at_ratio      r(α) - r(θ) ≥ 0 at one α
    lines         y of one algorithm's MA line minus another's, at places between θ_0 and the reward that both reach
    best, reach   the highest y, and r, of two algorithms' MA sweeps
    posts         y(θ) of one algorithm minus another's
    below_pre     y(point) - y(θ_0) < 0
    trend         y rises with a parameter
    rows          a row of Table 1 minus the original
"""

from __future__ import annotations

from collections.abc import Callable

from reproalign.ama.study.check import Check
from reproalign.ama.study.claim_fronts import hypervolumes, lines, margins, order
from reproalign.ama.study.claim_places import at_ratio, below_pre, best, part, posts, rows, tax, trend
from reproalign.ama.study.findings import CONDITIONS, Effect
from reproalign.common.errors import UserError
from reproalign.common.study.findings import Finding

KINDS: dict[str, Callable[[Check], Finding[Effect]]] = {
    "tax": tax,
    "margin": margins,
    "hypervolume": hypervolumes,
    "order": order,
    "part": part,
    "at_ratio": at_ratio,
    "lines": lines,
    "best": best,
    "posts": posts,
    "below_pre": below_pre,
    "trend": trend,
    "rows": rows,
}


def run_check(check: Check, judge: str) -> Finding[Effect]:
    """Run one check; where sweeps are compared, ``judge`` says whether by front or by hypervolume.

    Raises:
        UserError: for a kind or a condition that there is not.
    """
    kind = check.entry["kind"]
    if kind not in KINDS or not set(check.entry.get("conditions", {}).values()) <= CONDITIONS.keys():
        raise UserError(f"paper.yaml: unknown kind of check '{kind}', or an unknown condition in it")
    if judge == "hypervolume" and check.entry.get("front"):
        return hypervolumes(
            Check(check.results, {**check.entry, "method": check.entry["methods"][0]}, check.confidence)
        )
    return KINDS[kind](check)
