"""Which tensors are averaged, and with which ratio: three named rules, the same for every method.

A ratio multiplies the model before RLHF, merged = a · pre + (1 - a) · post. The paper and the release do not agree on
what is averaged, nor does the release with itself:

====================  ==================================================================================================
``released_ma``       every tensor (``weight_interpolation.py``): what lies in a layer, norms included, by the layer's
                      part; the head and the norms outside the layers at the base ratio; embeddings and anything else
                      by the first part
``linear_head_pre``   linear layers by their part, the head at the base ratio, everything else pre (the release's merge
                      of learned ratios, ``weight_mask_merge.py``)
``linear_head_post``  the same with everything else post (the paper: App. D.4 and D.5 name linear layers and the head
                      alone, and what is not averaged is θ)
====================  ==================================================================================================

An embedding that is the head as well (tied) is treated as the head, whose value is the one that the release's loading
leaves in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from reproalign.ama.levels import HEAD
from reproalign.ama.parts import Parts, is_linear
from reproalign.common.errors import UserError
from reproalign.common.merging.blocks import EXPERT, Block, Blocks

BASE = "base"  # place of what has the base ratio
PRE, POST = 1.0, 0.0


@dataclass(frozen=True)
class TensorRule:
    """A rule for one model and its parts.

    Attributes:
        name: one of ``TENSORS`` in :mod:`reproalign.ama.average.config`.
        head: one of its ``HEADS``: the base ratio, the ratio of its own group, or fully post (the release's
            ``final0`` and ``split0``).
        parts: groups of layers.
        blocks: of the model.
        tied: the embedding is the head.
    """

    name: str
    head: str
    parts: Parts
    blocks: Blocks
    tied: bool

    def place(self, tensor: str) -> str | float:
        """Return where a tensor's ratio comes from: a group of the parts, :data:`BASE`, or the ratio itself.

        Args:
            tensor: its name in a checkpoint.

        Raises:
            UserError: see :meth:`.Parts.group`.
        """
        block = self.blocks.block(tensor)
        if self.is_head(tensor, block):
            if self.head == "post":
                return POST
            return HEAD if self.head == "learned" else BASE
        owner = self.blocks.owner(tensor)
        if self.name == "released_ma":
            if block.layer is not None:
                return self.parts.group(block.layer, owner)
            return BASE if block.kind == "norm" else self.parts.names[0]
        if self._is_linear(tensor, owner):
            return BASE if block.layer is None else self.parts.group(block.layer, owner)
        return PRE if self.name == "linear_head_pre" else POST

    def ratio(self, tensor: str, ratios: Mapping[str, float], base: float) -> float:
        """Return the ratio of a tensor, that of its part (R2).

        Args:
            tensor: its name in a checkpoint.
            ratios: of the groups, on pre.
            base: α, on pre.
        """
        place = self.place(tensor)
        if isinstance(place, float):
            return place
        return base if place == BASE else ratios[place]

    def is_head(self, tensor: str, block: Block) -> bool:
        """Say whether a tensor is the head's, or the embedding that stands for it."""
        return block.kind == "head" or self.is_tied(tensor)

    def is_tied(self, tensor: str) -> bool:
        """Say whether a tensor is the embedding and the head at once."""
        return self.tied and tensor == f"{self.blocks.input_embedding}.weight"

    def _is_linear(self, tensor: str, owner: str | None) -> bool:
        if owner is None:
            return EXPERT.search(tensor) is not None
        return is_linear(self.blocks.model.get_submodule(owner))


def tensor_rule(
    name: str, head: str | None, parts: Parts, blocks: Blocks, *, learned_head: bool = True, untied: bool = False
) -> TensorRule:
    """Return a rule whose settings fit together.

    Args:
        name: see :class:`TensorRule`.
        head: likewise; None: the head's own group if the parts have one, otherwise the base ratio.
        parts: of the model.
        blocks: of the model.
        learned_head: whether None may mean the head's own group (the release's merge ignores what it learned for it).
        untied: a tied head becomes a tensor of its own.

    Raises:
        UserError: for a learned head without a group, or norms without a part (``linearwise``).
    """
    chosen = head or ("learned" if parts.has_head and learned_head else "base")
    if chosen == "learned" and not parts.has_head:
        raise UserError(f"head=learned: parts={parts.level} learn no ratio for the head; take parts=lblock3")
    if name == "released_ma" and parts.modules:
        raise UserError(
            "tensors=released_ma averages norms, for which parts=linearwise has no ratio; take linear_head_pre or "
            "linear_head_post"
        )
    return TensorRule(name, chosen, parts, blocks, tied=blocks.tied and not untied)
