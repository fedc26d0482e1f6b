"""Keys that are fields of another library's dataclass, such as ``trainer.*`` of ``transformers.TrainingArguments``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, get_args, get_origin

from reproalign.common.errors import UserError, choose, did_you_mean
from reproalign.common.options.check import check_option
from reproalign.common.options.declare import Option
from reproalign.common.options.keys import keys
from reproalign.common.options.load import load_object


def check_foreign(schema: type, config: Mapping[str, Any]) -> None:
    """Check the mappings of a resolved configuration whose keys are another library's, which is imported for it.

    Args:
        schema: the configuration class.
        config: plain values.

    Raises:
        UserError: for a key that the library lacks, one that is set elsewhere, or a wrong value.
    """
    for key, field in keys(schema):
        if field.option is not None and field.option.fields_of:
            given: Any = config
            for part in key.split("."):
                given = given[part]
            if given:
                check_fields(field.option, key, given)


def check_fields(option: Option, key: str, given: Mapping[str, Any]) -> None:
    """Check one such mapping: names, types, words of a few choices, and the ranges that are declared with the key.

    Building the library's object would check more, but may set the device up, which only a process that trains should.

    Raises:
        UserError: likewise.
    """
    kind = load_object(option.fields_of)
    known = {field.name: field for field in dataclasses.fields(kind) if field.init}
    for name, value in given.items():
        declared = option.fields.get(name)
        if isinstance(declared, str):
            why = f"does {declared}" if declared.startswith("nothing") else f"is set through {declared}"
            raise UserError(f"{key}.{name} {why}; remove it from {key}.*")
        if name not in known:
            hint = did_you_mean(f"{key}.{name}", (f"{key}.{other}" for other in known))
            raise UserError(f"unknown key '{key}.{name}'{hint}; it must be a field of {kind.__name__}")
        _check_type(f"{key}.{name}", value, known[name].type)
        choices = known[name].metadata.get("choices")
        if choices and value is not None:
            choose(f"{key}.{name}", str(value), map(str, choices))
        if declared is not None:
            check_option(declared, f"{key}.{name}", value)


def _check_type(key: str, value: Any, expected: Any) -> None:
    kinds = get_args(expected) if get_origin(expected) is not None and get_args(expected) else (expected,)
    if value is None and type(None) in kinds:
        return
    choices = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Enum)), None)
    if choices is not None:
        choose(key, str(value), [str(choice.value) for choice in choices])
        return
    wanted = {kind for kind in kinds if kind is not type(None)}
    if wanted == {bool} and not isinstance(value, bool):
        raise UserError(f"{key}={value} must be true or false")
    if wanted == {str} and not isinstance(value, str):
        raise UserError(f"{key}={value} must be text")
    mapping = dict in {get_origin(kind) or kind for kind in wanted}  # which libraries read from JSON, too
    if mapping and isinstance(value, str) and not value.startswith("{") and not Path(value).is_file():
        raise UserError(f"{key}={value} must be a mapping")
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if wanted <= {int, float} and not number:
        raise UserError(f"{key}={value} must be a number")
    if number and not math.isfinite(value):
        raise UserError(f"{key}={value} must be finite")
    if wanted == {int} and not float(value).is_integer():
        raise UserError(f"{key}={value} must be a whole number")
