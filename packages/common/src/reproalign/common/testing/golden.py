"""Golden vectors: recorded inputs and outputs that an implementation must reproduce."""

from __future__ import annotations

import importlib.util
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_NON_FINITE |= {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def load_golden(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Read every ``*.json`` of ``folder``: {function: [{inputs, params, outputs}, …]}, found by the ``function`` field.

    What else a file says holds for all its cases: it is added to their params, with ``folder``, where files lie that
    the cases name. A file with neither ``function`` nor ``cases`` is one of those.

    Raises:
        ValueError: if the folder holds no golden file, or a file has another shape.
    """
    functions: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and not {"function", "cases"} & content.keys():
            continue
        if not isinstance(content, dict) or "function" not in content or "cases" not in content:
            raise ValueError(f"{path}: not a golden file (fields 'function' and 'cases' are needed)")
        shared = {name: value for name, value in content.items() if name not in ("function", "description", "cases")}
        beside = {**shared, "folder": folder} if shared else {}
        cases = [{**case, "params": {**beside, **case["params"]}} for case in content["cases"]]
        functions.setdefault(content["function"], []).extend(cases)
    if not functions:
        raise ValueError(f"{folder}: no golden files (*.json)")
    return functions


def golden_folders(config: pytest.Config, paper: str) -> list[Path]:
    """Return the folders of ``paper``'s vectors: ``--golden DIR`` or its subfolder of that name; else those beside the
    repository, if there are any: ``golden`` and ``golden-audit``.
    """
    given = config.getoption("--golden")
    if given:
        folder = Path(given)
        return [folder / paper if (folder / paper).is_dir() else folder]
    beside = config.rootpath.parent / "shared"
    return [folder / paper for folder in (beside / "golden", beside / "golden-audit") if (folder / paper).is_dir()]


def parametrize_golden(metafunc: pytest.Metafunc, paper: str) -> None:
    """Give a test its ``function`` and ``case``, one for every recorded case; skipped where there are none."""
    import pytest

    cases = [
        pytest.param(function, case, id=f"{function}-{number}")
        for folder in golden_folders(metafunc.config, paper)
        for function, cases in load_golden(folder).items()
        for number, case in enumerate(cases)
    ]
    skipped = [pytest.param("", {}, marks=pytest.mark.skip("no golden vectors here"))]
    metafunc.parametrize("function, case", cases or skipped)


def load_adapters(test_file: str) -> dict[str, Callable[[Any, Any], Any]]:
    """Return ``ADAPTERS`` of the file ``golden_adapters.py`` beside ``test_file``."""
    spec = importlib.util.spec_from_file_location("golden_adapters", Path(test_file).with_name("golden_adapters.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ADAPTERS  # type: ignore[no-any-return]


def assert_matches(
    actual: Any, expected: Any, *, rtol: float = 1e-9, atol: float = 1e-9, path: str = "outputs"
) -> None:
    """Assert that ``actual`` equals ``expected``: numbers to a tolerance, everything else exactly.

    Tensors and arrays may stand for lists, ``"NaN"`` and ``"±Infinity"`` for non-finite numbers. Only keys of
    ``expected`` are looked at.

    Raises:
        AssertionError: naming the path to the first difference.
    """
    if hasattr(actual, "tolist"):
        actual = actual.tolist()
    if isinstance(expected, str) and expected in _NON_FINITE and not isinstance(actual, str):
        expected = _NON_FINITE[expected]
    if isinstance(expected, dict):
        assert isinstance(actual, dict), f"{path}: expected an object, got {actual!r}"
        for key, value in expected.items():
            assert key in actual, f"{path}.{key}: missing"
            assert_matches(actual[key], value, rtol=rtol, atol=atol, path=f"{path}.{key}")
    elif isinstance(expected, list):
        assert isinstance(actual, list | tuple), f"{path}: expected a list, got {actual!r}"
        assert len(actual) == len(expected), f"{path}: {len(actual)} items, expected {len(expected)}"
        for index, (left, right) in enumerate(zip(actual, expected, strict=True)):
            assert_matches(left, right, rtol=rtol, atol=atol, path=f"{path}[{index}]")
    elif isinstance(expected, float) or (isinstance(expected, int) and isinstance(actual, float)):
        assert isinstance(actual, int | float), f"{path}: expected {expected}, got {actual!r}"
        same = (math.isnan(actual) and math.isnan(expected)) or math.isclose(
            actual, expected, rel_tol=rtol, abs_tol=atol
        )
        assert same, f"{path}: {actual!r} differs from {expected!r}"
    else:
        assert actual == expected, f"{path}: {actual!r} differs from {expected!r}"
