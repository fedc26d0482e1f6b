"""The registry of data sets: what each is called, where it is on the Hub, and how one of its rows becomes a record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from reproalign.common.data.records import PreferenceRecord


@dataclass(frozen=True)
class Home:
    """Where a source's rows are on the Hub: data set, the names of its train and test splits, folder in it."""

    name: str
    hub: str | None
    splits: tuple[str, str]
    data_dir: str | None = field(default=None, kw_only=True)


@dataclass(frozen=True)
class Source(Home):
    """A registered source: its function, and its home on the Hub."""

    to_record: Callable[[dict[str, Any]], PreferenceRecord]


SOURCES: dict[str, Source] = {}


def source(
    name: str, *, hub: str | None = None, splits: tuple[str, str] = ("train", "test")
) -> Callable[[Callable[[dict[str, Any]], PreferenceRecord]], Callable[[dict[str, Any]], PreferenceRecord]]:
    """Register a function from original row to record under ``name``."""

    def register(
        function: Callable[[dict[str, Any]], PreferenceRecord],
    ) -> Callable[[dict[str, Any]], PreferenceRecord]:
        SOURCES[name] = Source(name, hub, splits, function)
        return function

    return register
