"""Words of a command line, ``key=value``, from plain values: what a run types for the runs that it starts."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any

from reproalign.common.mappings import flatten
from reproalign.common.options.unread import off_keys


def as_word(key: str, value: Any) -> str:
    """Return the word that gives ``key`` a plain value, quoted for Hydra's grammar: ``loss.beta=0.1``, ``path='a b'``.

    Args:
        key: with dots.
        value: null, a number, a truth value, text, or a list or mapping of such.
    """
    return f"{key}={_literal(value)}"


def section_words(section: str, values: Any) -> list[str]:
    """Return the words that give a section's keys what differs from the defaults of its class, and is read.

    Args:
        section: e.g. ``model``.
        values: an object of a structured configuration class, all of whose fields have defaults.
    """
    default, unread = flatten(asdict(type(values)())), off_keys(type(values), asdict(values))
    given = {key: value for key, value in flatten(asdict(values)).items() if key not in unread}
    return [as_word(f"{section}.{key}", value) for key, value in given.items() if value != default.get(key)]


def _literal(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_literal, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{name}:{_literal(entry)}" for name, entry in value.items()) + "}"
    if isinstance(value, str):
        if re.fullmatch(r"[A-Za-z_./][\w./:-]*", value, re.ASCII) and value.lower() not in (
            "null",
            "true",
            "false",
            "nan",
            "inf",
        ):
            return value
        text = value.replace("${", "\\${")  # no reference to another key
        text = re.sub(r"(\\*)'", r"\1\1\\'", text)  # backslashes count before a quote alone
        return "'" + re.sub(r"(\\+)$", r"\1\1", text) + "'"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
