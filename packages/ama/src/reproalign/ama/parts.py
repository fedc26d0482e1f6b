"""Parts of a network: which layers share one ratio of averaging.

The paper averages by parts of consecutive layers (Section 5), the release by blocks (``mask_trainer.py``); both are
said by a *level*:

====================  ==================================================================================================
``block3``            the release's three blocks: layers 0-7, 8-15 and the rest; beyond 30 layers 0-10, 11-20, the rest
``lblock3``           the same, and the head as a group of its own
``paper3``            the paper's: thirds, 1-8, 9-17 and 18-26 (from one) of 26 layers; the same as ``even3``
``blockN``            the release's other blocks: N of ⌊L/N⌋ layers each, and what is left in the last one
``evenN``             N blocks, the k-th up to layer ⌊k L/N⌋ (from one), so that no two differ by more than one layer
``7#16``              upper ends of all blocks but the last, from zero, included
``layerwise``         every layer
``linearwise``        every linear layer inside the layers
====================  ==================================================================================================
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from reproalign.common.errors import UserError, did_you_mean
from reproalign.common.merging.blocks import Blocks

HEAD = "lm_head"  # the name of lblock3's fourth group
LEVELS = ("block3", "lblock3", "paper3", "layerwise", "linearwise", "block6", "even4", "7#16")
ALIASES = {"input": 0, "middle": 1, "output": 2}  # of three parts, in the paper's words


@dataclass(frozen=True)
class Parts:
    """The groups of layers (or linear layers) that share a ratio.

    Attributes:
        level: as the user gave it.
        names: of the groups, from input to output; the head, where it is one, comes last.
        layer_groups: group of every layer; empty if a layer has no one group (``linearwise``).
        modules: of ``linearwise``: linear layers, which are the groups' names; else empty.
    """

    level: str
    names: tuple[str, ...]
    layer_groups: tuple[str, ...]
    modules: tuple[str, ...] = ()

    @property
    def has_head(self) -> bool:
        """The head is a group of its own."""
        return HEAD in self.names

    @property
    def layer_shares(self) -> tuple[float, ...]:
        """How many layers each group holds; a linear layer is its share of its layer, the head is none."""
        if self.modules:
            counts = Counter(_layer(module) for module in self.modules)
            return tuple(1 / counts[_layer(module)] for module in self.modules)
        sizes = Counter(self.layer_groups)
        return tuple(float(sizes[name]) for name in self.names)

    def group(self, layer: int, module: str | None) -> str:
        """Return the group of a linear layer.

        Args:
            layer: that it lies in.
            module: its name; None if the checkpoint's tensors are not laid out as the model's modules.

        Raises:
            UserError: if ``linearwise`` knows no linear layer of that name.
        """
        if not self.modules:
            return self.layer_groups[layer]
        if module not in self.modules:
            raise UserError(
                f"parts={self.level}: a tensor of layer {layer} lies in no linear layer of the model ({module}); take "
                "layerwise or blocks for mixtures of experts"
            )
        return module

    def find(self, word: str, key: str) -> str:
        """Return the group that a user names: by its name, or ``input``, ``middle``, ``output`` of three.

        Raises:
            UserError: naming the ``key``, if there is none.
        """
        if word in self.names:
            return word
        layered = [name for name in self.names if name != HEAD]
        if word in ALIASES and len(layered) == len(ALIASES):
            return layered[ALIASES[word]]
        known = [*(ALIASES if len(layered) == len(ALIASES) else ()), *self.names]
        shown = ", ".join(known[:8]) + (", …" if len(known) > 8 else "")
        raise UserError(f"{key}={word} is no part of parts={self.level}{did_you_mean(word, known)}; it has {shown}")

    def means(self, ratios: Sequence[float]) -> tuple[float, float]:
        """Return the mean of ratios over the groups, (1/K) Σ α_k (paper, Ω), and over the layers, Σ n_k α_k / Σ n_k.

        Args:
            ratios: one for each group.
        """
        shares = self.layer_shares
        weighted = math.fsum(share * ratio for share, ratio in zip(shares, ratios, strict=True))
        return math.fsum(ratios) / len(ratios), weighted / math.fsum(shares)


def make_parts(level: str, blocks: Blocks, *, released: bool = False) -> Parts:
    """Return the parts of a model.

    Args:
        level: see the module.
        blocks: of the model.
        released: take what the release makes of a level, however odd, see :func:`released_layer_groups`; linear layers
            outside its own groups stay outside (``linearwise`` has no groups, so nothing to normalise by).

    Raises:
        UserError: for an unknown level, split points that are not in order, or parts without layers.
    """
    if level == "linearwise":
        names = tuple(linear_modules(blocks))
        return Parts(level, () if released else names, (), names)
    return parts_of_layers(level, blocks.layers, released=released)


def linear_modules(blocks: Blocks) -> list[str]:
    """Return the linear layers inside the layers, by the names of their modules, in the model's order.

    These are modules whose weight is a matrix and that embed nothing: ``nn.Linear``, GPT-2's transposed ``Conv1D``,
    routers. Stacked experts are no modules of their own.
    """
    return [
        name
        for name, module in blocks.model.named_modules()
        if is_linear(module) and blocks.block(f"{name}.weight").layer is not None
    ]


def is_linear(module: nn.Module) -> bool:
    """Say whether a module holds one matrix and embeds nothing."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.dim() == 2 and not isinstance(module, nn.Embedding)


def parts_of_layers(level: str, layers: int, *, released: bool = False) -> Parts:
    """Return the parts of a model of which only the number of layers is known; see :func:`make_parts`.

    Raises:
        UserError: also for ``linearwise``, which needs the model.
    """
    theirs = released and re.fullmatch(r"\d+(#\d+)*|even\d+|paper3", level) is None
    groups = released_layer_groups(level, layers) if theirs else _layer_groups(level, layers)
    names = tuple(dict.fromkeys(groups))
    return Parts(level, (*names, HEAD) if level == "lblock3" else names, groups)


def released_layer_groups(level: str, layers: int) -> tuple[str, ...]:
    """Return the group of every layer as ``mask_trainer.py`` has it.

    Any name with ``block3`` in it is ``block3`` (``block30`` too), another ``blockN`` has the floor rule, with all
    layers in the last group if there are fewer than N, and a name without ``block`` groups nothing.

    Raises:
        UserError: if N is no number or 0.
    """
    if level == "layerwise":
        return tuple(map(str, range(layers)))
    if "block3" in level:
        return _cut((10, 20) if layers > 30 else (7, 15), layers)
    return _floor(_count(level, level[5:]), layers) if "block" in level else ()


def pivots_of(level: str) -> tuple[int, ...] | None:
    """Return the split points of a level such as ``7#16``; None if it is of another form.

    Raises:
        UserError: if they do not rise, so that a layer would have two parts.
    """
    if not re.fullmatch(r"\d+(#\d+)*", level):
        return None
    pivots = tuple(map(int, level.split("#")))
    if any(later <= earlier for earlier, later in pairwise(pivots)):
        raise UserError(
            f"parts={level}: split points must rise, or parts overlap; write {'#'.join(map(str, sorted({*pivots})))}"
        )
    return pivots


def check_level(level: str) -> None:
    """Refuse a level that no model has, before one is opened.

    Raises:
        UserError: see :func:`make_parts`.
    """
    if level != "linearwise":
        _layer_groups(level, None)


def _layer_groups(level: str, layers: int | None) -> tuple[str, ...]:
    """Return the group of every layer, or only check the level's form."""
    pivots = pivots_of(level)
    if pivots is not None:
        if layers is not None and pivots[-1] >= layers - 1:
            raise UserError(
                f"parts={level}: split point {pivots[-1]} leaves nothing above it, the layers are 0 to {layers - 1}; "
                "give the last layer of every part but the last"
            )
        return _cut(pivots, layers or 0)
    if level in ("block3", "lblock3"):
        return released_layer_groups(level, layers or 0)
    if level == "layerwise":
        return tuple(map(str, range(layers or 0)))
    found = re.fullmatch(r"(block|even)(\d+)", "even3" if level == "paper3" else level)
    if found is None:
        raise UserError(
            f"unknown parts '{level}'{did_you_mean(level, LEVELS)}; write block3, lblock3, paper3, blockN, evenN, "
            "layerwise, linearwise, or split points such as 7#16"
        )
    kind, count = found[1], _count(level, found[2])
    if layers is None:
        return ()
    if count > layers:
        raise UserError(f"parts={level}: the model has only {layers} layers; take at most that many parts")
    if kind == "block":
        return _floor(count, layers)
    return _cut(tuple(step * layers // count - 1 for step in range(1, count)), layers)


def _floor(count: int, layers: int) -> tuple[str, ...]:
    size = layers // count
    return tuple(str(min(layer // size, count - 1) if size else count - 1) for layer in range(layers))


def _cut(pivots: Sequence[int], layers: int) -> tuple[str, ...]:
    return tuple(str(bisect_left(pivots, layer)) for layer in range(layers))


def _count(level: str, digits: str) -> int:
    if not digits.isdecimal() or int(digits) == 0:
        raise UserError(f"parts={level}: '{digits}' is no number of parts; write e.g. block6")
    return int(digits)


def _layer(module: str) -> str:
    found = re.search(r"\.(\d+)\.", module)
    return found[1] if found else ""
