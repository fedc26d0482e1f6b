"""What the chunked computations share: chunk sizes, logits of a chunk, sums that do not round each other off.

Of 16-bit factors every product is added up in float32 and stays there: logits are never 16-bit numbers, and the
gradients of hidden states and head are rounded once, at the end, to the dtype of the tensor that they belong to.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK_BYTES = {"cpu": 32 * 2**20, "cuda": 256 * 2**20}  # CPU: what stays near the caches; GPU: what keeps it busy


def default_chunk_size(vocab_size: int, device: torch.device) -> int:
    """Return how many token positions one float32 logits buffer holds.

    The buffer is 32 MiB on a CPU and 256 MiB on an accelerator. It does not depend on the memory that is free: chunks
    of another size add up in another order, and a run resumed beside others must give the same bits.
    """
    return max(16, CHUNK_BYTES.get(device.type, CHUNK_BYTES["cuda"]) // (4 * vocab_size))


def positions_at_once(chunk_size: int | None, vocab_size: int, device: torch.device, *, buffers: int = 1) -> int:
    """Return the chunk size that is in force: ``chunk_size``, or where it is None what ``buffers`` times fits.

    Raises:
        ValueError: for a chunk size below 1.
    """
    if chunk_size is None:
        return max(1, default_chunk_size(vocab_size, device) // buffers)
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    return chunk_size


def statistics_dtype(hidden: Tensor) -> torch.dtype:
    """float64 for float64, float32 for everything else."""
    return torch.float64 if hidden.dtype == torch.float64 else torch.float32


def chunks(length: int, size: int) -> Iterator[slice]:
    """Cut ``range(length)`` into slices of ``size``."""
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def product(left: Tensor, right: Tensor) -> Tensor:
    """Return left @ right of two matrices of one dtype in the statistics dtype: 16-bit factors, float32 sums.

    On CUDA the 16-bit kernels hand over what they have added up in float32; elsewhere the factors are upcast, which is
    exact.
    """
    wide = statistics_dtype(left)
    with torch.autocast(left.device.type, enabled=False):
        if left.dtype == wide:
            return left @ right
        if left.is_cuda:
            return torch.mm(left, right, out_dtype=wide)
        return left.to(wide) @ right.to(wide)


def compute_dtype(hidden: Tensor) -> torch.dtype:
    """The dtype of the factors of products: autocast's where it is on (float64 keeps its own), else that of the states.

    An autograd function asks for it before it switches autocast off, under which sums of products, those of
    ``torch.linalg.vecdot`` too, would be rounded to 16 bits.
    """
    kind = hidden.device.type
    if hidden.dtype != torch.float64 and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return hidden.dtype


def chunk_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None, scale: float) -> Tensor:
    """Logits of one chunk in the statistics dtype; the buffer is the caller's to overwrite."""
    logits = product(hidden, weight.T)
    if bias is not None:
        logits.add_(bias)
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
        hidden: all hidden states, in the dtype of the products.
        weight: the head's weight, likewise.
        inputs: hidden states, weight and bias as they came, whose dtypes the gradients get.
        needed: which of the three are wanted.
    """

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        inputs: tuple[Tensor, Tensor, Tensor | None],
        needed: tuple[bool, bool, bool],
    ) -> None:
        self._states, self._head = hidden, weight
        wide = statistics_dtype(hidden)
        states, head, bias = inputs
        self._dtypes = (head.dtype, head.dtype if bias is None else bias.dtype)
        self.hidden = torch.empty_like(states) if needed[0] else None
        self.weight = torch.zeros_like(head, dtype=wide) if needed[1] else None
        self.bias = torch.zeros_like(bias, dtype=wide) if needed[2] and bias is not None else None

    def add(self, part: slice, gradient: Tensor, slope: Tensor | None) -> None:
        """Add dL/dz of ``part``, times ``slope`` of the soft-capping; overwrites ``gradient``."""
        if slope is not None:
            gradient.mul_(slope)
        if self.bias is not None:
            self.bias += gradient.sum(0)
        gradient = gradient.to(self._head.dtype)
        if self.hidden is not None:
            self.hidden[part] = product(gradient, self._head)
        if self.weight is not None:
            self.weight.add_(product(gradient.T, self._states[part]))

    def result(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the three in the dtypes of their tensors."""
        weight, bias = (
            None if total is None else total.to(dtype)
            for total, dtype in zip((self.weight, self.bias), self._dtypes, strict=True)
        )
        return self.hidden, weight, bias
