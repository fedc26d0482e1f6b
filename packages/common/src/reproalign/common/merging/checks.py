"""Checks of single values: what YAML may get wrong, and numbers that differ by block."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from reproalign.common.errors import UserError
from reproalign.common.merging.config import MergeConfig
from reproalign.common.merging.values import Cases, Gradient, Setting
from reproalign.common.options.check import check_option
from reproalign.common.options.keys import fields

DECLARED = {field.name: field.option for field in fields(MergeConfig) if field.option is not None}

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


def check_setting(key: str, value: Any, name: str) -> Setting:
    """Check every number of a setting: it is finite, and in the range that MergeConfig declares for its key ``name``.

    Raises:
        UserError: naming the ``key``, which may be one of ``parts``.
    """
    if isinstance(value, Cases):
        for _, inner in value.cases:
            check_setting(key, inner, name)
        return value
    if isinstance(value, Gradient):
        for inner in value.values:
            check_setting(key, inner, name)
        return value
    number = check_number(key, value)
    check_option(DECLARED[name], key, number)
    return number


def check_number(key: str, value: Any) -> float:
    """Return a number.

    Raises:
        UserError: for what is no finite number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{key}={value} must be a finite number")
    return float(value)
