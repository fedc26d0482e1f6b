"""Checks of single values: what YAML may get wrong, and numbers within bounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from reproalign.common.errors import UserError
from reproalign.common.merging.values import Cases, Gradient, Setting

# Types of MergeConfig's keys that YAML may get wrong, in words, and what tells them.
TYPES: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    str | None: ("one text", lambda value: isinstance(value, str)),
    list[str] | None: (
        "a list of texts",
        lambda value: isinstance(value, list) and all(isinstance(entry, str) for entry in value),
    ),
    bool | None: ("true or false", lambda value: isinstance(value, bool)),
    int | None: ("a whole number", lambda value: type(value) is int),
    dict[str, Any]: ("a mapping of blocks to weights", lambda value: isinstance(value, dict)),
}


def check_type(key: str, value: Any, expected: Any) -> None:
    """Refuse what the command line's parser would; numbers may differ by block and are checked where they are read.

    Raises:
        UserError: naming the key and what it must be.
    """
    words, fits = TYPES.get(expected, ("", lambda _: True))
    if value is not None and not fits(value):
        raise UserError(f"{key}: {value} must be {words}")


def check_setting(key: str, value: Any, **bounds: float) -> Setting:
    """Check every number of a setting, see :func:`check_number`."""
    if isinstance(value, Cases):
        for _, inner in value.cases:
            check_setting(key, inner, **bounds)
        return value
    if isinstance(value, Gradient):
        for inner in value.values:
            check_number(key, inner, None, **bounds)
        return value
    return check_number(key, value, None, **bounds)


def check_number(
    key: str,
    value: Any,
    default: float | None,
    *,
    above: float | None = None,
    least: float | None = None,
    most: float | None = None,
) -> float:
    """Return a number, or its default where it is None.

    Raises:
        UserError: for what is no finite number, or lies outside its bounds.
    """
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{key}={value} must be a finite number")
    if above is not None and value <= above:
        raise UserError(f"{key}={value} must be above {above:g}")
    if least is not None and value < least:
        raise UserError(f"{key}={value} must be at least {least:g}")
    if most is not None and value > most:
        raise UserError(f"{key}={value} must be at most {most:g}")
    return float(value)
