"""Values that differ from block to block: a number, a gradient over the layers, cases by selector, or any function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from reproalign.common.errors import UserError
from reproalign.common.merging.blocks import Block, matches


@dataclass(frozen=True)
class Gradient:
    """Values spread evenly over a range of layers and interpolated between (mergekit's lists).

    What lies outside the layers has the first value, as in mergekit 0.1.5.

    Attributes:
        values: at equal distances.
        layers: first and last layer; None: all.
    """

    values: tuple[float, ...]
    layers: tuple[int, int] | None

    def at(self, block: Block, count: int) -> float:
        """Return the value at a block of a model with ``count`` layers."""
        first, last = self.layers or (0, count - 1)
        place = 0.0
        if block.layer is not None:
            place = (block.layer - first) / (last - first) if last > first else 1.0
        scaled = min(max(place, 0.0), 1.0) * (len(self.values) - 1)
        below = min(int(scaled), len(self.values) - 1)
        above = min(below + 1, len(self.values) - 1)
        return self.values[below] + (scaled - below) * (self.values[above] - self.values[below])


@dataclass(frozen=True)
class Cases:
    """Values by selector: the first that matches counts."""

    cases: tuple[tuple[str, Setting], ...]


@dataclass(frozen=True)
class PerTensor:
    """Values that a caller works out for each tensor, where no selector says them.

    Attributes:
        label: what plans and cards say instead.
        value: from a tensor's name in the output to its value.
    """

    label: str
    value: Callable[[str], float] = field(repr=False, compare=False)


Setting = float | Gradient | Cases | PerTensor


def evaluate(setting: Setting, tensor: str, block: Block, count: int, key: str) -> float:
    """Return the value of a setting for a tensor of a model with ``count`` layers.

    Raises:
        UserError: if it has none for it.
    """
    if isinstance(setting, Gradient):
        return setting.at(block, count)
    if isinstance(setting, PerTensor):
        return setting.value(tensor)
    if isinstance(setting, Cases):
        for selector, inner in setting.cases:
            if selector == "*" or matches(selector, tensor, block):
                return evaluate(inner, tensor, block, count, key)
        raise UserError(f"{key}: no value for tensor '{tensor}' ({block}); add one without a filter at the end")
    return setting


def selectors(setting: Setting) -> list[str]:
    """List the selectors of a setting."""
    if not isinstance(setting, Cases):
        return []
    return [name for selector, inner in setting.cases for name in (selector, *selectors(inner)) if name != "*"]
