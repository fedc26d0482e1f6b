"""Levels: the words that say how a network is cut into parts, and the part of each layer.

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

import re
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise

from reproalign.common.errors import UserError, did_you_mean

HEAD = "lm_head"  # the name of lblock3's fourth group
LEVELS = ("block3", "lblock3", "paper3", "layerwise", "linearwise", "block6", "even4", "7#16")


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
        layer_groups(level, None)


def layer_groups(level: str, layers: int | None) -> tuple[str, ...]:
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
