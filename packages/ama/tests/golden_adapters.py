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


@adapter("group_texts nested in (Mask|Continual|)Finetuner.group_text")
def _group_texts(inputs: Case, params: Case) -> Any:
    from reproalign.ama.align.packing import group_texts

    return group_texts(inputs, params["block_size"])


@adapter("group_text(): block-size resolution (re-derived from the branches of the original)")
def _effective_block_size(inputs: Case, params: Case) -> Any:
    from reproalign.ama.align.packing import effective_block_size

    truncate = params["truncate_to_model_max_length"]
    return {"block_size": effective_block_size(params["block_size"], inputs["model_max_length"], truncate=truncate)}


# Rejection sampling: batches of prompts, filters, selection.


# Judging.
