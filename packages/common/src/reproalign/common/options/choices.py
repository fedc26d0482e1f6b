"""A section whose class is chosen by its name: ``loss=NAME``, with the keys of that loss alone.

A field made by :func:`one_of` holds a value out of a registry, name -> dataclass. In a configuration it is a section
with ``name`` and the options of the class, and may hold further such sections (``loss.risk=NAME``). Which class that
is, is known once files and words are: :func:`specialised` makes the schema of it, by which keys are checked, and
:func:`built` the value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, make_dataclass
from functools import cache
from typing import Any, get_type_hints

from reproalign.common.errors import choose
from reproalign.common.options.declare import option
from reproalign.common.options.keys import fields, is_section
from reproalign.common.options.load import load_object

CHOICE = "reproalign choice"  # where a dataclass field keeps it


@dataclass(frozen=True)
class Choice:
    """What a section is chosen from; see :func:`one_of`."""

    registry: str
    help: str
    default: str
    by_variant: Mapping[str, str]

    def classes(self) -> Mapping[str, Any]:
        """Return the registry."""
        found: Mapping[str, Any] = load_object(self.registry)
        return found


def one_of(registry: str, default: str, *, help: str, **by_variant: str) -> Any:
    """Declare a section that holds a value out of a registry.

    Args:
        registry: ``module:MAPPING`` of names to dataclasses, which must import quickly.
        default: the name if none is given.
        help: what is chosen, in one line.
        **by_variant: other defaults, by the ``variant`` of the configuration.
    """
    choice = Choice(registry, help, default, by_variant)
    return dataclasses.field(default_factory=lambda: choice.classes()[default](), metadata={CHOICE: choice})


def chosen_sections(schema: type) -> dict[str, Choice]:
    """Return the fields of a class that :func:`one_of` made."""
    return {entry.name: entry.metadata[CHOICE] for entry in dataclasses.fields(schema) if CHOICE in entry.metadata}


@cache
def opened(schema: type) -> type:
    """Return ``schema`` with free keys in its chosen sections, for files that are read before the names are known."""
    free: list[Any] = [
        (name, dict[str, Any], dataclasses.field(default_factory=dict)) for name in chosen_sections(schema)
    ]
    return make_dataclass(schema.__name__, free, bases=(schema,)) if free else schema


def named(schema: type, config: dict[str, Any], words: Mapping[str, str], prefix: str = "", variant: str = "") -> None:
    """Write the name of every chosen section into ``config``: of a word, of the files, or the default.

    Where a word names another class than the files, those of the files' keys are kept that the class has too.

    Args:
        schema: the class.
        config: its plain values as the files have them; changed.
        words: key -> value, as given: ``{"loss": "slic", "loss.risk.name": "entropic"}``.
        prefix: of the keys.
        variant: of the configuration; "": as the words or the files have it, or by default.

    Raises:
        UserError: for an unknown name.
    """
    variant = variant or str(words.get("variant", config.get("variant", getattr(schema, "variant", ""))))
    for name, choice in chosen_sections(schema).items():
        key, classes = f"{prefix}{name}", choice.classes()
        section: dict[str, Any] = config.get(name) or {}
        word, kept = words.get(key, words.get(f"{key}.name")), section.get("name")
        found = choose(
            key, str(kept or choice.by_variant.get(variant, choice.default)) if word is None else word, classes
        )
        if word not in (None, kept):
            known = get_type_hints(classes[found])
            section = {option: value for option, value in section.items() if option in known}
        config[name] = {**section, "name": found}
        named(classes[found], config[name], words, f"{key}.", variant)


def specialised(schema: type, config: Mapping[str, Any]) -> type:
    """Return ``schema`` with the classes of its chosen sections as ``config`` names them, each with a ``name``."""
    return _specialised(schema, _names(schema, config))


# Of each chosen section its key, its name and those of the sections in it; one class is made of the same ones.
Names = tuple[tuple[str, str, Any], ...]


def _names(schema: type, config: Mapping[str, Any]) -> Names:
    sections = {name: (choice.classes(), config[name]) for name, choice in chosen_sections(schema).items()}
    return tuple(
        (name, values["name"], _names(classes[values["name"]], values)) for name, (classes, values) in sections.items()
    )


@cache
def _specialised(schema: type, names: Names) -> type:
    sections: list[Any] = [
        (name, section, dataclasses.field(default_factory=section))
        for name, found, inner in names
        for section in [_section(chosen_sections(schema)[name], found, inner)]
    ]
    return make_dataclass(schema.__name__, sections, bases=(schema,)) if sections else schema


def _section(choice: Choice, name: str, names: Names) -> type:
    found = choice.classes()[name]
    hints, nested = get_type_hints(found), {key: (own, inner) for key, own, inner in names}
    options: list[Any] = [("name", str, option(name, help=choice.help, choices=choice.registry))]
    for entry in dataclasses.fields(found):
        kind: Any = hints[entry.name]
        factory: Any = entry.default_factory
        default = entry.default
        if entry.name in nested:
            kind = _section(chosen_sections(found)[entry.name], *nested[entry.name])
            factory = kind
            default = dataclasses.MISSING
        given: Any = {"default": default} if factory is dataclasses.MISSING else {"default_factory": factory}
        options.append((entry.name, kind, dataclasses.field(**given, metadata=entry.metadata)))
    section = make_dataclass(found.__name__, options)
    section.__doc__ = found.__doc__
    return section


def built(schema: type, config: Mapping[str, Any]) -> Any:
    """Return a configuration's plain values as an object of its class, chosen sections as the values they stand for.

    Args:
        schema: the class.
        config: a value of its type for every key that is not to have its default; not checked.
    """
    given, chosen = dict(config), chosen_sections(schema)
    for field in fields(schema):
        value = given.get(field.name)
        if field.name in chosen and value is not None:
            named = dict(value)
            given[field.name] = built(chosen[field.name].classes()[named.pop("name")], named)
        elif is_section(field.kind) and value is not None:
            given[field.name] = built(field.kind, value)
        elif is_section(field.entry) and isinstance(value, Mapping):
            given[field.name] = {name: built(field.entry, entry) for name, entry in value.items()}
        elif is_section(field.entry) and value is not None:
            given[field.name] = [built(field.entry, entry) for entry in value]
    return schema(**given)
