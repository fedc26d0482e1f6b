"""What a merge will do or did, for a person: tables, notes, and the plan as YAML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from reproalign.common.merging.adapter_merge import MergedAdapter
from reproalign.common.merging.blocks import Block
from reproalign.common.merging.planning import MergePlan
from reproalign.common.merging.resolving import METHOD_KEYS
from reproalign.common.merging.settings import METHODS, MergeSettings
from reproalign.common.merging.values import Cases, Gradient, PerTensor, Setting

# Fields of MergeSettings that are called otherwise in a plan.
RENAMED = {"densities": "density"}


def plan_table(plan: MergePlan, labels: Sequence[str], threads: int) -> Table:
    """Lay out which rule and numbers apply to which block; runs of layers that are treated alike share a line."""
    settings = plan.settings
    table = Table("block", "tensors", "size", "rule", "numbers", title=f"{settings.method} of {', '.join(labels)}")
    lines = [
        (block, type(plan.jobs[name].rule).__name__, plan.numbers[name], plan.jobs[name].output.nbytes)
        for name, block in plan.blocks.items()
    ]
    groups: dict[tuple[str, bool, str, str], list[tuple[Block, int]]] = {}
    for block, rule, numbers, nbytes in lines:
        groups.setdefault((block.kind, block.layer is None, rule, numbers), []).append((block, nbytes))
    for (kind, outside, rule, numbers), members in groups.items():
        layers = sorted({block.layer for block, _ in members if block.layer is not None})
        where = kind if outside else f"layers.{_spans(layers)}.{kind}"
        table.add_row(where, str(len(members)), decimal(sum(size for _, size in members)), rule, numbers)
    read = sum(
        job.operands.info(index).nbytes for job in plan.jobs.values() for index in range(len(job.operands.sources))
    )
    again = plan.work > read + plan.output_bytes
    passes = f" ({decimal(plan.work - plan.output_bytes)} over all passes)" if again else ""
    table.caption = (
        f"{len(plan.jobs)} tensors; reads {decimal(read)}{passes}, writes {decimal(plan.output_bytes)}; tensors in "
        f"memory: at most {decimal(plan.memory(threads))} in {threads} threads"
    )
    return table


def adapter_table(settings: MergeSettings, merged: MergedAdapter) -> Table:
    """Lay out what became of adapters: the space, the ranks, and how far the two spaces are apart."""
    table = Table("adapters", "space", "rank", "factor-delta gap", "error")
    gap = "no factor average" if merged.gap is None else f"{merged.gap:.3g}"
    error = "no average" if merged.error is None else f"{merged.error:.2g}"
    table.add_row(", ".join(settings.models), settings.space or "delta", str(merged.config["r"]), gap, error)
    return table


def print_notes(console: Console, notes: Sequence[str]) -> None:
    """Print what the user should know."""
    for note in notes:
        console.print(f"note: {note}", style="yellow", soft_wrap=True)


def as_plan_file(settings: MergeSettings) -> dict[str, Any]:
    """Return what was merged in the words of a plan file, defaults that matter included."""
    read = METHODS[settings.method].keys
    found: dict[str, Any] = {}
    for entry in fields(settings):
        name = RENAMED.get(entry.name, entry.name)
        value = getattr(settings, entry.name)
        if name in METHOD_KEYS | {"seed"} and name not in read:
            continue
        if value in (None, (), frozenset()) or name == "layers":
            continue
        found[name] = _plain(value)
    return found | _parts(settings)


def _parts(settings: MergeSettings) -> dict[str, Any]:
    """Return the defaults and ``parts`` of settings that hold them, in the order in which later ones win."""
    groups: dict[str, tuple[Setting, ...]] = {
        "weights": settings.weights,
        "density": settings.densities,
        "t": (settings.t,),
    }
    found: dict[str, Any] = {}
    parts: dict[str, Any] = {}
    for key, group in groups.items():
        cases = [setting.cases for setting in group if isinstance(setting, Cases)]
        if not cases or any(not isinstance(inner, float) for case in cases for _, inner in case):
            continue  # a plan of mergekit may nest further
        columns = [[inner for _, inner in column] for column in zip(*cases, strict=True)]
        *selected, found[key] = [column if key == "weights" else column[0] for column in columns]
        for (selector, _), value in zip(reversed(cases[0][:-1]), reversed(selected), strict=True):
            parts[f"{selector}.{key}"] = value
    return found | ({"parts": parts} if parts else {})


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, frozenset):
        return sorted(value)
    return _plain_setting(value) if isinstance(value, Gradient | Cases | PerTensor) else value


def _plain_setting(setting: Setting) -> Any:
    if isinstance(setting, Gradient):
        return list(setting.values)
    if isinstance(setting, PerTensor):
        return setting.label
    if isinstance(setting, Cases):
        return [{"filter": selector, "value": _plain_setting(inner)} for selector, inner in setting.cases]
    return setting


def _spans(layers: Sequence[int]) -> str:
    """Write ``0-3,5`` for 0, 1, 2, 3, 5."""
    runs = [[layer for _, layer in run] for _, run in groupby(enumerate(layers), key=lambda pair: pair[1] - pair[0])]
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
