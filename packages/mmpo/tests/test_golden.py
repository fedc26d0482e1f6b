"""The released variant reproduces recorded inputs and outputs of the original functions."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from reproalign.common.errors import UserError
from reproalign.common.testing import assert_matches, load_golden

_spec = importlib.util.spec_from_file_location("golden_adapters", Path(__file__).with_name("golden_adapters.py"))
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)
ADAPTERS = _module.ADAPTERS

# Where the release crashes on input that has a meaning, we compute it: reference_free (Q7), tensors of targets (Q8),
# overflow of the exponential (Q12), an empty conversation (section 3.3).
MENDED = {("dpo_loss", "AttributeError"), ("dpo_loss", "RuntimeError"), ("bt_target", "OverflowError")}
MENDED |= {("rm_preprocess", "OverflowError"), ("chat_format", "IndexError")}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = golden_folder(metafunc.config)
    if folder is None:
        metafunc.parametrize("function, case", [pytest.param("", {}, marks=pytest.mark.skip("no golden vectors here"))])
        return
    cases = [
        pytest.param(function, case, id=f"{function}-{number}")
        for function, cases in load_golden(folder).items()
        for number, case in enumerate(cases)
    ]
    metafunc.parametrize("function, case", cases)


def golden_folder(config: pytest.Config) -> Path | None:
    given = config.getoption("--golden")
    if given:
        return Path(given)
    beside = config.rootpath.parent / "shared" / "golden" / "mmpo"
    return beside if beside.is_dir() else None


def test_reproduces_the_original(function: str, case: dict[str, Any]) -> None:
    assert function in ADAPTERS, f"no adapter for the golden function '{function}'"
    error = case["outputs"].get("error")
    if error is None:
        large = abs(case["outputs"].get("loss") or 0) > 1e3 if function == "dpo_loss" else False
        actual = ADAPTERS[function](case["inputs"], case["params"])
        assert_matches(actual, case["outputs"], atol=1e-7 if large else 1e-9)
        return
    try:
        ADAPTERS[function](case["inputs"], case["params"])
    except (UserError, TypeError, ValueError, ZeroDivisionError, RuntimeError):
        return
    assert (function, error) in MENDED, f"the original raised {error}, this succeeded"
