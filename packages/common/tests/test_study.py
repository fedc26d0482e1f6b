"""Claims held against numbers: verdicts, and the four forms of a report."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import dataclass
from typing import Any

import pytest

from reproalign.common.errors import UserError
from reproalign.common.study.claims import (
    check_claims,
    claims_csv,
    claims_json,
    claims_markdown,
    refuse_insufficient,
    verdict,
)
from reproalign.common.study.findings import Finding, joined


@dataclass(frozen=True)
class Gap:
    """An effect as a paper might measure it."""

    label: str
    value: float
    clear: bool | None = None

    @property
    def met(self) -> bool:
        return self.value > 0

    @property
    def text(self) -> str:
        return f"{self.label} | {self.value:+.1f}"

    def values(self) -> dict[str, Any]:
        return {"gap": self.value}


CLAIMS = {
    "C1": {"claim": "a is above b", "where": ["Table 1"], "published": {"not": ["BBH"], "note": "no errors"}},
    "C2": {"claim": "c is above d", "published": {}},
}
FOUND = {
    "a is above b": Finding([Gap("MMLU", 1.0, clear=True), Gap("BBH", -2.0, clear=False)], ["no GSM8K"]),
    "c is above d": Finding[Gap](missing=["no row c"]),
}
CHECKED = check_claims(None, CLAIMS, lambda claim: FOUND[claim["claim"]], lambda claim: Finding([Gap("x", math.inf)]))


def test_a_verdict_says_how_many_hold_which_do_not_and_what_is_missing():
    assert verdict(FOUND["a is above b"]) == "in part, 1 of 2 (not BBH); 1 of 2 clear; not tested: no GSM8K"
    assert verdict(FOUND["c is above d"]) == "not testable: no row c"
    assert verdict(Finding([Gap("x", 1.0)])) == "supported, 1 of 1"  # whether it is clear is not known
    assert Finding([Gap("x", -1.0)]).verdict == "contradicted"
    both = joined(FOUND.values())
    assert (both.holds, both.missing) == ("1 of 2", ["no GSM8K", "no row c"])


def test_reports_hold_every_instance_and_are_valid_in_their_formats():
    rows = list(csv.DictReader(io.StringIO(claims_csv(CHECKED))))
    assert [(row["claim"], row["numbers"], row["instance"], row["gap"], row["met"], row["clear"]) for row in rows] == [
        ("C1", "paper", "MMLU", "1", "true", "true"),
        ("C1", "paper", "BBH", "-2", "false", "false"),
        ("C1", "ours", "x", "inf", "true", ""),
        ("C2", "ours", "x", "inf", "true", ""),
    ]
    first, second = json.loads(json.dumps(claims_json(CHECKED), allow_nan=False))
    assert (first["id"], first["where"], first["paper"]["met"], first["paper"]["of"]) == ("C1", ["Table 1"], 1, 2)
    assert second["ours"]["effects"] == [{"instance": "x", "gap": None, "met": True, "clear": None}]
    lines = claims_markdown(CHECKED).splitlines()
    assert len({line.replace(r"\|", "").count("|") for line in lines}) == 1  # a bar in a cell is no column
    assert "BBH; no errors" in lines[2]


def test_a_claim_that_is_asked_for_must_exist_and_be_testable():
    with pytest.raises(UserError, match="unknown claim 'C3'"):
        check_claims(["C3"], CLAIMS, lambda claim: Finding(), None)
    checked = check_claims(["C2"], CLAIMS, lambda claim: Finding(), lambda claim: FOUND[claim["claim"]])
    with pytest.raises(UserError, match="claim C2: the results do not suffice: no row c"):
        refuse_insufficient(checked, "results")
