"""Gemma 1 as transformers 4.38 computed it, on which models trained at that time depend.

transformers up to 4.38 took the activation that Gemma's configuration names, ``gelu`` (exact: x Φ(x)), and multiplied
embeddings by √hidden as a Python number. Later versions take the tanh approximation, whatever the configuration says,
and round √hidden to the dtype of the weights: 55.5 in place of 55.4256 in bfloat16 at hidden = 3,072.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from transformers.models.gemma.modeling_gemma import GemmaMLP, GemmaTextScaledWordEmbedding

from reproalign.common.errors import UserError
from reproalign.common.models.forward import replace_forward

_SCALE = "gemma_scale"  # the change to the embeddings' forward


def apply_gemma_numerics(model: nn.Module, numerics: str | None, name: str) -> None:
    """Let a loaded Gemma 1 compute as ``numerics`` says; its weights stay as they are.

    Args:
        model: changed in place.
        numerics: ``current`` or None: nothing is changed; ``transformers-4.38``: exact GELU, unrounded scale.
        name: of the model, for errors.

    Raises:
        UserError: for a model that is no Gemma 1.
    """
    if numerics in (None, "current"):
        return
    embeddings = [module for module in model.modules() if isinstance(module, GemmaTextScaledWordEmbedding)]
    if not embeddings:
        raise UserError(f"model.gemma_numerics={numerics} is for Gemma 1, which '{name}' is not; remove it")
    for embedding in embeddings:
        replace_forward(embedding, _SCALE, _scaled)
    for module in model.modules():
        if isinstance(module, GemmaMLP):
            module.act_fn = nn.GELU()


def _scaled(self: Any, input_ids: Tensor) -> Tensor:
    """Embed, and multiply by √hidden at the precision of the product, not of the weights."""
    scaled: Tensor = functional.embedding(input_ids, self.weight, self.padding_idx) * self.scalar_embed_scale
    return scaled
