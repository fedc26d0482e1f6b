"""Facts of published launches are compared with what recipes come to; what differs or is missing is named."""

from __future__ import annotations

import pytest

from reproalign.common.testing import Fact, assert_facts

STATED = {
    "processes": Fact(4, "fsdp_4gpu.yaml"),
    "rates": Fact([0.1, 0.8544], "scheduler.py"),
    "rates_at": Fact({0: 0.1}, "scheduler.py"),
    "order": Fact("shuffled", "dataloader.py"),
}


def test_equal_facts_pass_and_more_may_be_derived():
    derived = {"processes": 4, "rates": (0.1, 0.85440000001), "rates_at": {0: 0.1}, "order": "shuffled", "more": 1}
    assert_facts(STATED, derived)


@pytest.mark.parametrize(
    ("name", "value"),
    [("processes", 1), ("rates", [0.1]), ("rates", [0.1, 0.86]), ("rates_at", {1: 0.1}), ("order", "as it stands")],
)
def test_a_fact_that_differs_is_named_with_its_source(name, value):
    derived = {fact: stated.value for fact, stated in STATED.items()} | {name: value}
    with pytest.raises(AssertionError, match=f"{name}: the recipe comes to .*{STATED[name].source}"):
        assert_facts(STATED, derived)


def test_a_fact_that_nothing_derives_is_named():
    with pytest.raises(AssertionError, match=r"derives from no recipe: \['order'\]"):
        assert_facts(STATED, {"processes": 4, "rates": [0.1, 0.8544], "rates_at": {0: 0.1}})
