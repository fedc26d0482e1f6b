"""From golden inputs to this package's functions and back: format translation only, no logic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Case = dict[str, Any]
ADAPTERS: dict[str, Callable[[Case, Case], Any]] = {}


def adapter(name: str) -> Callable[[Callable[[Case, Case], Any]], Callable[[Case, Case], Any]]:
    """Register an adapter under the golden file's ``function``."""

    def register(function: Callable[[Case, Case], Any]) -> Callable[[Case, Case], Any]:
        ADAPTERS[name] = function
        return function

    return register


# Averaging: names, interpolation, learned merges, grouping.


# Adapting: ratios, regulariser, merged linear layers, the released optimiser.


# Aligning: packing, penalties.


# Rejection sampling: batches of prompts, filters, selection.


# Judging.
