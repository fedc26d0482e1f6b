"""Keys that another key turns on, as ``lora.enabled`` does ``lora.r``: refused of a user while it is off.

A recipe or a group may have them, for whoever turns them on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from reproalign.common.errors import UserError
from reproalign.common.mappings import flatten
from reproalign.common.options.keys import keys

OFF = (None, False, "none", "auto")  # auto: it is decided elsewhere, and what goes with it too


def check_read(schema: type, config: Mapping[str, Any], given: Collection[str]) -> None:
    """Refuse a key of the user's words that the run would not read; its default, and what is nothing, says nothing.

    Args:
        schema: the configuration class.
        config: plain values.
        given: keys that the user's words set.

    Raises:
        UserError: naming the key, and what turns it on.
    """
    values, defaults = flatten(config), {key: field.default for key, field in keys(schema)}
    for key, switches in off_keys(schema, config).items():
        if key in given and values[key] not in (*OFF, defaults[key]):
            named = " or ".join(switches)
            raise UserError(f"{key} is not read without {named}; set {named} too, or leave {key} out")


def off_keys(schema: type, config: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the keys that are not read under ``config``, and of each those of which one would turn it on."""
    values, found = flatten(config), {}
    for key, field in keys(schema):
        section, dot, _ = key.rpartition(".")
        switches = [
            place
            for name in (field.option.read_with if field.option else ())
            for place in (f"{section}{dot}{name}", name)
            if place in values
        ]
        if key in values and switches and all(values[place] in OFF for place in switches):
            found[key] = list(dict.fromkeys(switches))
    return found
