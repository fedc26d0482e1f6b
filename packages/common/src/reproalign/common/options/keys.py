"""The keys of a configuration class, those of its sections included."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import MISSING

from reproalign.common.options.declare import METADATA, Option

NAME = "NAME"  # stands for any key of a mapping


@dataclass(frozen=True)
class Field:
    """One field of a configuration class.

    Attributes:
        name: without the section's.
        kind: its type, without None: a scalar, ``list``, ``dict``, ``Any``, or the configuration class of a section.
        entry: the type of a list's or mapping's entries, or None.
        optional: may be null.
        default: the class's, ``???`` if the user has to give one.
        option: its declaration; None for a section.
    """

    name: str
    kind: Any
    entry: Any
    optional: bool
    default: Any
    option: Option | None


def is_section(kind: Any) -> bool:
    """Say whether a type is a configuration class."""
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


@lru_cache(maxsize=1024)
def fields(schema: type) -> tuple[Field, ...]:
    """Return the fields of a configuration class, in the order in which they are declared, inherited ones first."""
    found, hints = [], get_type_hints(schema)
    for field in dataclasses.fields(schema):
        kinds = [hints[field.name]]
        if get_origin(kinds[0]) in (Union, types.UnionType):
            kinds = list(get_args(kinds[0]))
        given = [kind for kind in kinds if kind is not type(None)]
        kind = given[0] if len(given) == 1 else Any
        entries = get_args(kind)
        default = field.default
        if default is dataclasses.MISSING:
            default = MISSING if field.default_factory is dataclasses.MISSING else field.default_factory()
        found.append(
            Field(
                name=field.name,
                kind=get_origin(kind) or kind,
                entry=entries[-1] if entries else None,
                optional=len(given) < len(kinds) or kind is Any,
                default=default,
                option=field.metadata.get(METADATA),
            )
        )
    return tuple(found)


def keys(schema: type, prefix: str = "") -> Iterator[tuple[str, Field]]:
    """Yield (key with dots, field) of a configuration class; ``sets.NAME.path`` is a key in a mapping of sections."""
    for field in fields(schema):
        key = f"{prefix}{field.name}"
        if is_section(field.kind):
            yield from keys(field.kind, f"{key}.")
            continue
        yield key, field
        if is_section(field.entry):
            yield from keys(field.entry, f"{key}.{NAME}.")


def known_keys(schema: type) -> list[str]:
    """List the keys of a configuration class, with dots."""
    return [key for key, _ in keys(schema)]


def declared_fields(schema: type) -> list[str]:
    """List the keys of mappings to another library that have a meaning here: ``trainer.learning_rate``."""
    mappings = ((key, field.option.fields) for key, field in keys(schema) if field.option is not None)
    return [f"{key}.{name}" for key, known in mappings for name in known]


def locate(schema: type, key: str) -> tuple[Field, str] | None:
    """Find a key that a user gave.

    Returns:
        Its field, or the field of the mapping that it is in; and the outermost mapping on its way, "" for none. None
        if the class has no such key.
    """
    first, _, rest = key.partition(".")
    field = next((field for field in fields(schema) if field.name == first), None)
    if field is None:
        return None
    if field.kind is dict:
        _, _, inner = rest.partition(".")
        found = locate(field.entry, inner) if inner and is_section(field.entry) else (field, first)
        return found and (found[0], first)
    if not rest:
        return field, ""
    found = locate(field.kind, rest) if is_section(field.kind) else None
    return found and (found[0], found[1] and f"{first}.{found[1]}")
