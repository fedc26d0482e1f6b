"""The exact k-th largest magnitude of more entries than memory holds, from histograms of their bits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

DIGIT = 16  # bits that are decided in one pass
BINS = 1 << DIGIT
INFINITY = {torch.float32: 0x7F80, torch.float64: 0x7FF0}  # first digit
# Given the leading bits found so far for each set (or None) and how many passes are done, histograms of the next digit.
Pass = Callable[[list[int | None], int], Iterable[Int[Tensor, "sets bins"]]]


def digit_histogram(values: Tensor, prefix: int | None, done: int) -> Int[Tensor, " bins"]:
    """Count the ``done``-th 16-bit digit of the magnitudes whose leading digits are ``prefix``.

    Non-negative IEEE-754 numbers are ordered as their bit patterns are, so a radix sort's histogram finds order
    statistics exactly, in two passes for float32 and four for float64.

    Args:
        values: float32 or float64.
        prefix: leading digits; None: every value counts.
        done: digits before this one.

    Raises:
        ValueError: for NaN, which no order places.
    """
    wide = values.dtype == torch.float64
    leading = values.abs().view(torch.int64 if wide else torch.int32) >> ((64 if wide else 32) - DIGIT * (done + 1))
    if prefix is not None:
        return torch.bincount(leading[(leading >> DIGIT) == prefix] & (BINS - 1), minlength=BINS)
    histogram = torch.bincount(leading, minlength=BINS)
    # NaN shares its first digit with infinity, or has one above it.
    if histogram[INFINITY[values.dtype] :].any() and values.isnan().any():
        raise ValueError("a task vector holds NaN")
    return histogram


def kth_largest_magnitudes(counts: Sequence[int], dtype: torch.dtype, histograms: Pass) -> list[float]:
    """Return, for each of several sets of numbers, the magnitude that exactly its ``count`` largest reach.

    More reach it if some are equal to it; none reaches the infinity returned for a count of 0.

    Args:
        counts: k of each set.
        dtype: float32 or float64.
        histograms: makes a pass over the entries, see :func:`digit_histogram`; called two or four times.
    """
    prefixes: list[int | None] = [None] * len(counts)
    remaining = torch.tensor(counts).clamp(min=1)
    for done in range(dtype.itemsize * 8 // DIGIT):
        total = torch.zeros(len(counts), BINS, dtype=torch.int64)
        for histogram in histograms(prefixes, done):
            total += histogram
        reached = total.flip(1).cumsum(1)
        places = torch.searchsorted(reached, remaining[:, None])
        # Entries above the bin have been counted; what remains is sought inside it.
        above = reached.gather(1, places) - total.flip(1).gather(1, places)
        remaining -= above.squeeze(1)
        digits = (BINS - 1 - places.squeeze(1)).tolist()
        prefixes = [
            digit if prefix is None else (prefix << DIGIT) | digit
            for prefix, digit in zip(prefixes, digits, strict=True)
        ]
    patterns = torch.tensor(prefixes, dtype=torch.int64 if dtype == torch.float64 else torch.int32)
    found = patterns.view(dtype).tolist()
    return [value if count else float("inf") for value, count in zip(found, counts, strict=True)]
