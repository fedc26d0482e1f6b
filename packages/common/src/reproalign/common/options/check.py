"""A composed configuration is held against the declaration of its keys: one sentence for the first mistake."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from reproalign.common.errors import UserError, choose
from reproalign.common.options.declare import METADATA, Option
from reproalign.common.options.keys import Field, fields, is_section

WORDS: dict[type, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    list: "a list",
    dict: "a mapping",
}


def check(schema: type, config: Mapping[str, Any], prefix: str = "") -> None:
    """Check every value of a resolved configuration: choices, ranges, and the types of keys that take several.

    Types of the other keys are OmegaConf's affair, which converts ``"1"`` to a number where one is wanted.

    Args:
        schema: the configuration class.
        config: plain values, one for each field.
        prefix: what stands before a key, e.g. ``model.``.

    Raises:
        UserError: with the key's full name, its value and what is allowed.
    """
    for field in fields(schema):
        if field.name in config:
            _check_value(field, f"{prefix}{field.name}", config[field.name])


def check_file(schema: type, content: Mapping[str, Any], place: str | Path) -> None:
    """Check what a file says of a configuration's keys, as :func:`check` does; other keys are left to its reader.

    Args:
        schema: the configuration class.
        content: plain values by key.
        place: of the file.

    Raises:
        UserError: likewise, beginning with the place.
    """
    try:
        check(schema, content)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None


def check_characters(value: Any, key: str) -> None:
    """Refuse NUL in any text of a configuration, keys too: no path and no name may hold it.

    Raises:
        UserError: naming the key.
    """
    if isinstance(value, str) and "\0" in value:
        raise UserError(f"{key.replace(chr(0), '')} holds a NUL character, which no path and no name may; remove it")
    if isinstance(value, Mapping):
        for name, entry in value.items():
            inner = f"{key}.{name}".lstrip(".")
            check_characters(name, inner)
            check_characters(entry, inner)
    elif isinstance(value, list):
        for entry in value:
            check_characters(entry, key)


def check_value(value: Any) -> None:
    """Check the options of a value that was made without a configuration, as an objective is.

    Raises:
        ValueError: naming the class, the option and what is allowed.
    """
    for entry in dataclasses.fields(value):
        declared, found = entry.metadata.get(METADATA), getattr(value, entry.name)
        if not isinstance(found, int | float) or declared is None:
            continue
        if not math.isfinite(found) or not declared.contains(found):
            raise ValueError(f"{type(value).__name__}: {entry.name}={found} must be {allowed_numbers(declared, found)}")


def allowed_numbers(option: Option, number: int | float) -> str:
    """Say which numbers an option takes, of which ``number`` is none."""
    return " and ".join(filter(None, [option.range(), "" if math.isfinite(number) else "finite"]))


def _check_value(field: Field, key: str, value: Any) -> None:
    if value is None:
        return
    if value == "" and field.default == MISSING and field.option is not None and key == field.name:  # no section's
        raise UserError(f"{key} is empty; give it a value ({field.option.help})")
    if is_section(field.kind):
        check(field.kind, value, f"{key}.")
        return
    for name, entry in _entries(key, value).items():
        if is_section(field.entry):
            check(field.entry, entry, f"{name}.")
        elif field.entry in (int, float, str, bool) and isinstance(entry, Mapping):
            raise UserError(f"{name} must be {WORDS[field.entry]}, not a mapping")
    if field.option is not None and not field.option.fields_of:
        check_option(field.option, key, value)


def check_option(option: Option, key: str, value: Any) -> None:
    """Check one value, or every entry of a list or mapping, against a declaration.

    Raises:
        UserError: with the key's full name, its value and what is allowed.
    """
    if option.types:
        _check_type(option, key, value)
    for name, entry in _entries(key, value).items():
        _check_scalar(option, name, entry)


def _entries(key: str, value: Any) -> dict[str, Any]:
    """Return what a list or a mapping holds, or the value itself, by key: ``shares.hh``, ``betas[1]``."""
    if isinstance(value, Mapping):
        return {f"{key}.{name}": entry for name, entry in value.items()}
    if isinstance(value, list):
        return {f"{key}[{place}]": entry for place, entry in enumerate(value)}
    return {key: value}


def _check_type(option: Option, key: str, value: Any) -> None:
    number = float in option.types and isinstance(value, int) and not isinstance(value, bool)
    if not number and type(value) not in option.types:
        words = " or ".join(WORDS[kind] for kind in option.types)
        raise UserError(f"{key}={value} must be {words}")


def _check_scalar(option: Option, key: str, value: Any) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and not (math.isfinite(value) and option.contains(value)):
        raise UserError(f"{key}={value} must be {allowed_numbers(option, value)}")
    if option.choices and not option.also and value is not None and not (number and option.range()):
        allowed = option.allowed()
        if value not in allowed:
            choose(key, str(value), map(str, allowed))
    if isinstance(value, str) and value in option.needs and importlib.util.find_spec(option.needs[value]) is None:
        raise UserError(f"{key}={value} needs the package '{option.needs[value]}', which is not installed")
