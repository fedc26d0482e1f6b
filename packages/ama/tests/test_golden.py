"""The released variant reproduces recorded inputs and outputs of the original functions."""

from __future__ import annotations

from typing import Any

import pytest

from reproalign.common.errors import UserError
from reproalign.common.testing import assert_matches, load_adapters, parametrize_golden

ADAPTERS = load_adapters(__file__)
TOLERANCES: dict[str, float] = {}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    parametrize_golden(metafunc, "ama")


def test_reproduces_the_original(function: str, case: dict[str, Any]) -> None:
    assert function in ADAPTERS, f"no adapter for the golden function '{function}'"
    if case["outputs"].keys() == {"error"}:  # ours are other errors, and better ones
        with pytest.raises((UserError, LookupError, ValueError, RuntimeError)):
            ADAPTERS[function](case["inputs"], case["params"])
        return
    tolerance = TOLERANCES.get(function, 1e-9)
    assert_matches(ADAPTERS[function](case["inputs"], case["params"]), case["outputs"], rtol=tolerance, atol=tolerance)
