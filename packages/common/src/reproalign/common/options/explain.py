"""One sentence from the many lines of Hydra and OmegaConf, in the words of the configuration's declaration."""

from __future__ import annotations

import re

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from reproalign.common.errors import first_line
from reproalign.common.options.check import WORDS
from reproalign.common.options.keys import is_section, locate

_VALUE = re.compile(
    r"Value '(.*)' (?:of type '\w+' could not be converted|is not a valid)|Cannot convert '\w+' to string: '(.*)'$"
)


def explain(error: BaseException, schema: type) -> str:
    """Return what is wrong, with the key's full name where one is named.

    Args:
        error: of Hydra or OmegaConf.
        schema: the configuration class.
    """
    while error.__cause__ is not None and isinstance(error.__cause__, HydraException | OmegaConfBaseException):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines()]
    key = next((line.removeprefix("full_key:").strip() for line in lines if line.startswith("full_key:")), "")
    first = first_line(error)
    found = locate(schema, key.partition("[")[0])
    if found is None:
        return f"{key}: {first}" if key not in first else first
    field = found[0]
    if "is not a ListConfig, list or tuple" in first:
        return f"{key} is a list; write {key}=[A] or {key}=[A,B]"
    if "ListConfig" in first:
        return several_values(key)
    if first.startswith("Cannot assign") and "to Dict[" in first:
        return f"{key} is a mapping; write {key}.NAME{'.KEY' if is_section(field.entry) else ''}=VALUE"
    if first.startswith("Incompatible value 'None'"):
        return f"{key} may not be null; it is {WORDS.get(field.kind, 'a section')}"
    kind = field.entry if field.kind in (list, dict) else field.kind
    if (value := _VALUE.match(first)) and kind in WORDS:
        null = " or null" if field.optional and field.kind is kind else ""
        given = value[1] or value[2] or ""
        return f"{key}={given} must be {WORDS[kind]}{null}"
    if missing := re.match(r"Interpolation key '(.*)' not found", first):
        return f"{key} refers to the key {missing[1]}, which there is none of; give a value"
    return f"{key}: {first}" if key not in first else first


def several_values(key: str, or_else: str = "") -> str:
    """Return the sentence on several values for a key that takes one."""
    if key == "seed":
        return "seed is one number; write seeds=[1,2] to run each"
    return f"{key} takes one value; write sweep.{key}=[A,B] to run each{or_else}"


def explain_missing(key: str, schema: type, *, recipes: bool) -> str:
    """Return the sentence on a key that has to be given, with what it is.

    Args:
        key: with dots.
        schema: the configuration class.
        recipes: whether the verb has any, which may set it.
    """
    found = locate(schema, key)
    option = found[0].option if found else None
    meaning = "; ".join(filter(None, [option.help, f"null: {option.null}" if option.null else ""])) if option else ""
    return (
        f"{key} is not set; add {key}=VALUE{f' ({meaning})' if meaning else ''} to the command"
        f"{' or choose a recipe' if recipes else ''}"
    )
