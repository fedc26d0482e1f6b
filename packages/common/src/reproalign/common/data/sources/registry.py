"""The registry of data sets: what each is called, where it is on the Hub, and how one of its rows becomes prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from reproalign.common.data.reading import Row
from reproalign.common.data.records import Prompt, RowError

Read = Callable[[dict[str, Any]], Prompt | list[Prompt]]
Reader = TypeVar("Reader", bound=Read)
Gather = Callable[[Iterable[Row]], Iterator[Row]]


@dataclass(frozen=True)
class Source:
    """A registered data set.

    Attributes:
        name: as ``data.sets.NAME.source`` gives it.
        reader: from an original row to a :class:`~reproalign.common.data.records.Prompt`, or a list of them.
        columns: by which rows are recognised where the source is not named; none: it has to be named.
        hub: its home on the Hub, if it has one.
        splits: names of its training and held-out splits there; an empty name: it has none.
        data_dir: folder of the home.
        revision: of the home, where the default one cannot be read.
        gather: puts original rows together first, where one of them is less than a prompt.
        evaluation_only: its terms or its use forbid training.
    """

    name: str
    reader: Read
    columns: tuple[str, ...] = ()
    hub: str | None = None
    splits: tuple[str, str] = ("train", "test")
    data_dir: str | None = None
    revision: str | None = None
    gather: Gather | None = None
    evaluation_only: bool = False

    def read(self, values: dict[str, Any]) -> list[Prompt]:
        """Return the prompts of an original row.

        Raises:
            RowError: if the row does not fit.
        """
        found = self.reader(values)
        return found if isinstance(found, list) else [found]

    def read_one(self, values: dict[str, Any]) -> Prompt:
        """Return the one prompt of an original row.

        Raises:
            RowError: if the row does not fit, or has several.
        """
        found = self.read(values)
        if len(found) != 1:
            raise RowError(f"{len(found)} prompts in a row, where one is needed")
        return found[0]


SOURCES: dict[str, Source] = {}


def source(name: str, *columns: str, **home: Any) -> Callable[[Reader], Reader]:
    """Register a function from original row to prompt under ``name``.

    Args:
        name: of the data set.
        *columns: by which its rows are recognised.
        **home: the other attributes of :class:`Source`.
    """

    def register(reader: Reader) -> Reader:
        SOURCES[name] = Source(name, reader, columns, **home)
        return reader

    return register


def recognise(values: dict[str, Any]) -> Source | None:
    """Return the source with the most columns of those that ``values`` has; None if there is none."""
    there = {name for name, value in values.items() if value is not None}  # files of columns fill in the others
    fitting = [known for known in SOURCES.values() if known.columns and there >= set(known.columns)]
    return max(fitting, key=lambda known: len(known.columns), default=None)
