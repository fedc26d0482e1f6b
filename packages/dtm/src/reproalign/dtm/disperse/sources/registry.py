"""The registry of instruction data: how one row of a public data set becomes an instruction row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from reproalign.common.data.reading import Row

InstructionRow = dict[str, Any]  # instruction, input, output; {} under released: what the release makes of a misfit


@dataclass(frozen=True)
class Rules:
    """What a source has to know of the run.

    Attributes:
        released: make the release's row, unchecked.
        system: ``drop`` or ``keep`` system text.
    """

    released: bool = False
    system: str = "drop"


Group = Callable[[Iterable[Row]], Iterator[Row]]


@dataclass(frozen=True)
class Source:
    """A registered source.

    Attributes:
        name: as given in ``data.sets``.
        columns: by which its rows are recognised.
        to_row: from an original row, or raises :class:`~reproalign.common.data.records.RowError`.
        hub: its home on the Hub.
        group: puts original rows together first, where one of them is less than an example.
    """

    name: str
    columns: tuple[str, ...]
    to_row: Callable[[dict[str, Any], Rules], InstructionRow]
    hub: str | None = None
    group: Group | None = None


SOURCES: dict[str, Source] = {}


def source(
    name: str, columns: Sequence[str], *, hub: str | None = None, group: Group | None = None
) -> Callable[[Callable[[dict[str, Any], Rules], InstructionRow]], Callable[[dict[str, Any], Rules], InstructionRow]]:
    """Register a function from an original row to an instruction row under ``name``."""

    def register(
        function: Callable[[dict[str, Any], Rules], InstructionRow],
    ) -> Callable[[dict[str, Any], Rules], InstructionRow]:
        SOURCES[name] = Source(name, tuple(columns), function, hub, group)
        return function

    return register


def recognise(values: dict[str, Any]) -> Source | None:
    """Return the source with the most columns of those that ``values`` has; None if there is none."""
    fitting = [known for known in SOURCES.values() if values.keys() >= set(known.columns)]
    return max(fitting, key=lambda known: len(known.columns), default=None)
