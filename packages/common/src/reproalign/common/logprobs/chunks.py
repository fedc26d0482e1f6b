"""What the chunked computations share: chunk sizes, logits of a chunk, sums that do not round each other off."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import torch
from torch import Tensor

CHUNK_BYTES = {"cpu": 32 * 2**20, "cuda": 256 * 2**20}  # CPU: what stays near the caches; GPU: what keeps it busy
SHARE_OF_FREE = 16  # of what is free, one buffer takes no more than this part


def default_chunk_size(vocab_size: int, device: torch.device) -> int:
    """Return how many token positions one float32 logits buffer holds.

    The buffer is 32 MiB on a CPU and 256 MiB on an accelerator, or a sixteenth of the free memory where that is less.
    Chunks of another size add up in another order: on a device that is nearly full, set the size to get the same bits
    again.
    """
    budget = CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"])
    return max(16, min(budget, free_bytes(device) // SHARE_OF_FREE) // (4 * vocab_size))


def free_bytes(device: torch.device) -> int:
    """Return the memory that can still be allocated on ``device``, with what PyTorch's allocator keeps in reserve."""
    if device.type == "cpu":
        return int(psutil.virtual_memory().available)
    free, _ = torch.accelerator.get_memory_info(device)
    return int(free + torch.accelerator.memory_reserved(device) - torch.accelerator.memory_allocated(device))


def statistics_dtype(hidden: Tensor) -> torch.dtype:
    """float64 for float64, float32 for everything else."""
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


def chunks(length: int, size: int) -> Iterator[slice]:
    """Cut ``range(length)`` into slices of ``size``."""
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def chunk_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None, scale: float) -> Tensor:
    """Logits of one chunk in the statistics dtype; the buffer is the caller's to overwrite."""
    logits = hidden @ weight.T if bias is None else torch.addmm(bias, hidden, weight.T)
    logits = logits.to(statistics_dtype(hidden))
    if scale != 1.0:
        logits.mul_(scale)
    if softcap is not None:
        logits.div_(softcap).tanh_().mul_(softcap)
    return logits


def cap_slope(logits: Tensor, softcap: float | None) -> Tensor | None:
    """D softcap(a)/da from the capped logits: 1 - (z/c)²."""
    return None if softcap is None else 1.0 - (logits / softcap).square()


class HeadGradients:
    """Gradients of hidden states, head and bias, built up from the logits' gradient of one chunk after the other.

    Args:
        hidden: all hidden states.
        weight: the head's weight.
        bias: the head's bias.
        needed: which of the three are wanted.
    """

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, needed: tuple[bool, bool, bool]) -> None:
        dtype = statistics_dtype(hidden)
        self._states, self._head = hidden, weight
        self.hidden = torch.empty_like(hidden) if needed[0] else None
        self.weight = torch.zeros_like(weight, dtype=dtype) if needed[1] else None
        self.bias = torch.zeros_like(bias, dtype=dtype) if needed[2] and bias is not None else None

    def add(self, part: slice, gradient: Tensor, slope: Tensor | None) -> None:
        """Add dL/dz of ``part``, times ``slope`` of the soft-capping; overwrites ``gradient``."""
        if slope is not None:
            gradient.mul_(slope)
        if self.bias is not None:
            self.bias += gradient.sum(0)
        gradient = gradient.to(self._head.dtype)
        if self.hidden is not None:
            torch.mm(gradient, self._head, out=self.hidden[part])
        if self.weight is not None:
            _add_product(self.weight, gradient, self._states[part])

    def result(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the three in the dtype of the weights."""
        dtype = self._head.dtype
        weight, bias = (None if total is None else total.to(dtype) for total in (self.weight, self.bias))
        return self.hidden, weight, bias


def _add_product(total: Tensor, gradient: Tensor, hidden: Tensor) -> None:
    """Total += gradientᵀ hidden, kept in float32 when the inputs are 16-bit: chunks would round off each other."""
    if total.dtype == hidden.dtype:
        total.addmm_(gradient.T, hidden)
    else:
        total.add_(gradient.T @ hidden)
