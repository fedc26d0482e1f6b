"""What a tolerance cannot see: two implementations that agree closely at every step, and always err to one side."""

from __future__ import annotations

import math
from collections.abc import Sequence

BOUND = 4.0  # in standard errors: by chance about one comparison in 10,000, and seeds are fixed


def drift(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return Student's t of the residuals' mean: mean / (standard deviation / √n); 0 if all residuals are 0.

    The residuals must be independent: compare step by step on the same weights, not two trajectories, whose distance
    at one step is that at the step before and more.

    Args:
        ours: one number for each step.
        theirs: likewise, at least three.

    Raises:
        ValueError: for different lengths, or too few steps.
    """
    residuals = [left - right for left, right in zip(ours, theirs, strict=True)]
    count = len(residuals)
    if count < 3:
        raise ValueError(f"{count} residuals say nothing of a mean; compare at least 3 steps")
    mean = math.fsum(residuals) / count
    variance = math.fsum((residual - mean) ** 2 for residual in residuals) / (count - 1)
    if variance == 0.0:
        return 0.0 if mean == 0.0 else math.copysign(math.inf, mean)
    return mean / math.sqrt(variance / count)


def assert_no_drift(ours: Sequence[float], theirs: Sequence[float], *, bound: float = BOUND) -> None:
    """Fail if the residuals of a step-wise comparison have a mean that is not 0 (:func:`drift`).

    Raises:
        AssertionError: if it is more than ``bound`` standard errors away.
    """
    found = drift(ours, theirs)
    assert abs(found) <= bound, f"one-sided drift: the residuals' mean is {found:.1f} standard errors from 0"
