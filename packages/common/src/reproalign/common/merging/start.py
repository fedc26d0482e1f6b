"""At which A an adapter's training began: only adapters of one start can be averaged factor by factor."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from reproalign.common.merging.adapter_merge import INITIAL_A

MARKERS = (".lora_A.", ".lora_embedding_A")


def start_manifest(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the content of ``adapter_manifest.json`` for an adapter that has not been trained yet.

    It is the SHA-256 over names, shapes and float32 bytes of all A, in the order of the names: equal for adapters with
    equal A, whatever device or dtype holds them.

    Args:
        state: of :func:`peft.get_peft_model_state_dict`.

    Returns:
        Nothing for an adapter without A, or one that is sharded.
    """
    factors = {name: tensor for name, tensor in sorted(state.items()) if any(mark in name for mark in MARKERS)}
    if not factors or any(tensor.numel() == 0 for tensor in factors.values()):
        return {}
    total = hashlib.sha256()
    for name, tensor in factors.items():
        plain = tensor.detach().to("cpu", torch.float32).contiguous()
        total.update(f"{name} {list(plain.shape)}\n".encode())
        total.update(plain.numpy().tobytes())
    return {INITIAL_A: total.hexdigest()}
