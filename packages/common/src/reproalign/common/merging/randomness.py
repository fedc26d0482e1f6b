"""Random choices that depend on a tensor's name and an entry's index alone, not on order, sharding or threads."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

PER_STEP = 8  # 32-bit words that one step of Philox gives


def keep_mask(seed: int, name: str, model: int, start: int, count: int, density: float) -> Bool[Tensor, " count"]:
    """Draw which entries of a task vector survive: each with probability ``density``, independently.

    The entry of flat index i is decided by the 32-bit word i of the counter-based generator Philox4x64-10 (Salmon et
    al., SC 2011), keyed by the SHA-256 of (seed, name, model). So any slice can be drawn by itself.

    Args:
        seed: of the run.
        name: of the tensor.
        model: index among the models.
        start: flat index of the first entry.
        count: how many.
        density: probability, in steps of 2⁻³².
    """
    digest = hashlib.sha256(f"{seed}\0{name}\0{model}".encode()).digest()
    bits = np.random.Philox(key=np.frombuffer(digest[:16], dtype="<u8"))
    bits.advance(start // PER_STEP)
    skipped = start % PER_STEP
    words = bits.random_raw(-(-(skipped + count) // 2)).astype("<u8", copy=False).view("<u4")[skipped : skipped + count]
    return torch.from_numpy(words < np.uint64(round(density * 2**32)))
