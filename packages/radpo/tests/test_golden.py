"""The released variant reproduces recorded inputs and outputs of the original functions."""

from __future__ import annotations

from typing import Any

import pytest

from reproalign.common.testing import assert_matches, load_adapters, parametrize_golden

ADAPTERS = load_adapters(__file__)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    parametrize_golden(metafunc, "radpo")


def test_reproduces_the_original(function: str, case: dict[str, Any]) -> None:
    assert function in ADAPTERS, f"no adapter for the golden function '{function}'"
    asked = {"steps": case["outputs"]["steps"]} if "steps" in case["outputs"] else {}  # at which a rate is recorded
    found = ADAPTERS[function](case["inputs"], {**case["params"], **asked})
    assert_matches({**asked, **found}, case["outputs"])
