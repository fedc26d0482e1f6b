"""Parts of a network: which layers, or linear layers, share one ratio of averaging (:mod:`reproalign.ama.levels`)."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from reproalign.ama.levels import HEAD, layer_groups, released_layer_groups
from reproalign.common.errors import UserError, did_you_mean
from reproalign.common.merging.blocks import Blocks

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
        """Return the mean of ratios over the groups, (1/K) Σ α_k (R3), and over the layers, Σ n_k α_k / Σ n_k.

        Args:
            ratios: one for each group.
        """
        shares = self.layer_shares
        weighted = math.fsum(share * ratio for share, ratio in zip(shares, ratios, strict=True))
        return math.fsum(ratios) / len(ratios), weighted / math.fsum(shares)


def make_parts(level: str, blocks: Blocks, *, released: bool = False) -> Parts:
    """Return the parts of a model.

    Args:
        level: see :mod:`reproalign.ama.levels`.
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
    groups = released_layer_groups(level, layers) if theirs else layer_groups(level, layers)
    names = tuple(dict.fromkeys(groups))
    return Parts(level, (*names, HEAD) if level == "lblock3" else names, groups)


def _layer(module: str) -> str:
    found = re.search(r"\.(\d+)\.", module)
    return found[1] if found else ""
