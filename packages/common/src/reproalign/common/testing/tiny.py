"""A reward model with a few thousand parameters."""

from __future__ import annotations

from typing import Any

import torch
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, PreTrainedModel

from reproalign.common.models.tiny import make_model, tiny_config


def tiny_reward_model(
    kind: str = "llama", *, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any
) -> PreTrainedModel:
    """Make a one-label sequence classifier, as :func:`reproalign.common.models.tiny.tiny_model` does."""
    config = tiny_config(kind, num_labels=1, **overrides)
    return make_model(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, config, seed, dtype)
