"""Words that a user gave, ``key=value`` in Hydra's grammar: read, held against the schema, put into a configuration."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import flag_override

from reproalign.common.errors import UserError, did_you_mean
from reproalign.common.options.explain import several_values
from reproalign.common.options.keys import declared_fields, fields, is_section, known_keys, locate
from reproalign.common.options.renamed import Renamed, new_name
from reproalign.common.options.words import as_word


def split(word: str) -> tuple[str, str]:
    """Return key and value of a word.

    Raises:
        UserError: if it is not of the form.
    """
    key, equals, value = word.partition("=")
    key = key.lstrip("+")
    if not equals or not re.fullmatch(r"[\w./@-]+", key):
        raise UserError(f"'{word}' is not of the form key=value")
    return key, value


def value_of(word: str) -> str:
    """Return a word's value as text, without the quotes that Hydra's grammar allows."""
    quoted = _is_understood(word) and word.partition("=")[2][:1] in "'\""
    return str(_parsed(word).value()) if quoted else word.partition("=")[2]


def put_values(composed: Any, words: Sequence[str]) -> None:
    """Give keys the values of checked words.

    Args:
        composed: the configuration, of OmegaConf; changed.
        words: of :func:`check_key`.

    Raises:
        UserError: for a value that cannot be read, or several values.
    """
    for override in map(_readable, words):
        key, value = override.key_or_group, override.value()
        if override.is_sweep_override():
            raise UserError(several_values(key, f", {key}=[A,B] for a list, or quote a text with commas"))
        for part in reversed(key.split(".")):
            value = {part: value}
        with flag_override(composed, "struct", False):  # mappings take new keys; those of sections were checked
            composed.merge_with(value)


def check_key(word: str, key: str, schema: type, renamed: Renamed) -> str:
    """Check that ``key`` exists, and return its word with a text beyond Hydra's grammar quoted; "" if it says no more.

    Raises:
        UserError: for an unknown key, or a section that is given as a value.
    """
    found = locate(schema, key)
    if found is None:
        known = known_keys(schema)
        sentence = new_name(key, word.partition("=")[2], known, renamed)
        ends = [full for full in [*known, *declared_fields(schema)] if full.endswith(f".{key}")]
        hint = f" (did you mean '{ends[0]}'?)" if len(ends) == 1 else did_you_mean(key, known)
        raise UserError(sentence or f"unknown key '{key}'{hint}; --help behind the verb lists the keys")
    field, mapping = found
    if is_section(field.kind) and (name := locate(schema, f"{key}.name")) and name[0].option and name[0].option.choices:
        return ""  # it names the section's class, which the schema already has
    value = word.partition("=")[2]
    inside = mapping and key.count(".") == mapping.count(".") + 1
    section = field.entry if inside else field.kind
    if is_section(section) and value[:1] not in ("{", ""):
        entries = ", ".join(entry.name for entry in fields(section))
        raise UserError(f"{key} is a section; write {key}.KEY={value}, where KEY is one of: {entries}")
    if mapping and not _is_understood(f"{key}=1"):
        inner = key.removeprefix(f"{mapping}.")
        raise UserError(f"'{key}' cannot be a key by itself; write it in braces: '{mapping}={{{inner}: {value}}}'")
    if field.kind in (str, Any) and not _is_understood(word):
        return as_word(key, value)  # a path beyond Hydra's grammar, or a list like 1,1,1
    return word.lstrip("+")


def _readable(word: str) -> Override:
    try:
        return _parsed(word)
    except HydraException as error:
        key, _, value = word.partition("=")
        raise UserError(
            f"{word}: cannot be read; close what is open of [], {{}} and quotes, or quote a text: {key}=\"'{value}'\""
        ) from error


@cache
def _parsed(word: str) -> Override:
    """Parse a word, once per process: it is asked for several times, and the children of a run are given most of it."""
    (override,) = OverridesParser.create().parse_overrides([word])
    return override


def _is_understood(word: str) -> bool:
    try:
        return not _parsed(word).is_sweep_override()
    except HydraException:
        return False
