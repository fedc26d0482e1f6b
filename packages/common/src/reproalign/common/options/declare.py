"""How a configuration class declares a key: ``beta: float = option(0.1, above=0, help="temperature")``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from reproalign.common.options.load import load_object

METADATA = "reproalign"  # where a dataclass field keeps its Option


@dataclass(frozen=True)
class Option:
    """What is said of a key; see :func:`option`."""

    help: str
    unit: str = ""
    choices: Mapping[Any, str] | Sequence[Any] | str = ()
    also: str = ""
    types: tuple[type, ...] = ()
    above: int | float | None = None
    at_least: int | float | None = None
    below: int | float | None = None
    at_most: int | float | None = None
    null: str = ""
    source: str = ""
    variant: str = ""
    read_with: tuple[str, ...] = ()
    needs: Mapping[str, str] = field(default_factory=dict)
    fields_of: str = ""
    fields: Mapping[str, Option | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a declaration that says nothing, or two lower or upper ends."""
        if not self.help:
            raise ValueError("an option needs a help text")
        if (self.above is not None and self.at_least is not None) or (
            self.below is not None and self.at_most is not None
        ):
            raise ValueError(f"'{self.help}' has two lower or two upper ends")

    def allowed(self) -> tuple[Any, ...]:
        """Return the choices: those given, or the names in the registry that was named; none for any value."""
        found = load_object(self.choices) if isinstance(self.choices, str) else self.choices
        return tuple(found() if callable(found) else found)

    def range(self) -> str:
        """Say the range, e.g. ``above 0 and at most 1`` or ``from 0 to 1``, or nothing."""
        if self.at_least is not None and self.at_most is not None:
            return f"from {self.at_least} to {self.at_most}"
        ends = {"above": self.above, "at least": self.at_least, "below": self.below, "at most": self.at_most}
        return " and ".join(f"{word} {end}" for word, end in ends.items() if end is not None)

    def contains(self, number: int | float) -> bool:
        """Say whether ``number`` is in the range; NaN is in none."""
        return (
            (self.above is None or number > self.above)
            and (self.at_least is None or number >= self.at_least)
            and (self.below is None or number < self.below)
            and (self.at_most is None or number <= self.at_most)
        )


def option(default: Any = MISSING, *, help: str, **facts: Any) -> Any:
    """Declare one key: its default and all that is known of it.

    For a list or a mapping, choices and range hold for each of its entries.

    Args:
        default: without one the user has to give the key. A list or a mapping is copied for every configuration.
        help: what it means, in one line.
        **facts: of :class:`Option`:

            - ``unit``: e.g. ``tokens``.
            - ``choices``: the values allowed: a sequence, a mapping from value to what it means, or
              ``module:registry`` (a mapping, a sequence or a function without arguments), which must import quickly.
            - ``also``: what is allowed beside the choices, in words, e.g. ``a file``; then any text passes.
            - ``types``: of a key annotated ``Any``, the types of its values, e.g. ``(int, list)``. ``float`` stands for
              every number.
            - ``above``, ``at_least``, ``below``, ``at_most``: the range of a number.
            - ``null``: what null stands for, where the key may be null.
            - ``source``: where the default is from, e.g. ``section 4.1``.
            - ``variant``: the one that alone reads it (:mod:`reproalign.common.options.variants`).
            - ``read_with``: keys beside it, or at the top, one of which has to be on for it to be read
              (:mod:`reproalign.common.options.unread`).
            - ``needs``: a value -> the package that has to be installed for it.
            - ``fields_of``: ``module:dataclass`` of another library whose fields are the keys of this mapping.
            - ``fields``: what is said of some of these fields: an :class:`Option`, or the key that sets it.

    Returns:
        A dataclass field.

    Raises:
        ValueError: without a meaning, or with two ends of a range on one side.
    """
    metadata = {METADATA: Option(help, **facts)}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: deepcopy(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def section(kind: type, *, help: str = "", **defaults: Any) -> Any:
    """Declare keys under a common name.

    Args:
        kind: the configuration class whose keys they are.
        help: what the section is about where the class does not say it, e.g. ``the policy``.
        **defaults: other defaults than the class's.
    """
    metadata = {METADATA: Option(help)} if help else {}
    return dataclasses.field(default_factory=lambda: kind(**defaults), metadata=metadata)


def like(kind: type, name: str, default: Any, **facts: Any) -> Any:
    """Declare a key as ``kind`` declares its key ``name``, with another default and whatever else differs.

    Args:
        kind: a configuration class.
        name: of a key of it.
        default: see :func:`option`.
        **facts: of :class:`Option`.
    """
    (declared,) = (field.metadata[METADATA] for field in dataclasses.fields(kind) if field.name == name)
    return option(default, **{**vars(declared), **facts})
