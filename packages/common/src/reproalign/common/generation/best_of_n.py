"""Best-of-n: of the first n candidates of each prompt, the one a reward model scores highest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class BestOfN:
    """The chosen candidates (prompts,), and their mean scores by the proxy and, if given, the gold reward."""

    selected: NDArray[np.int64]
    mean_proxy: float
    mean_gold: float | None


def best_of_n(proxy_scores: ArrayLike, n: int, gold_scores: ArrayLike | None = None) -> BestOfN:
    """Select by ``proxy_scores`` (prompts, candidates), the lowest index on ties.

    Args:
        proxy_scores: of the reward model that selects.
        n: how many of the candidates, from the first on, take part; all of them if there are fewer.
        gold_scores: of the judge that is believed.

    Raises:
        ValueError: for n below 1 or prompts without candidates.
    """
    proxy = np.asarray(proxy_scores, dtype=np.float64)
    if n < 1 or proxy.ndim != 2 or not proxy.shape[1]:
        raise ValueError(f"best of {n} needs n >= 1 and scores of shape (prompts, candidates), got {proxy.shape}")
    selected = proxy[:, :n].argmax(1)
    rows = np.arange(len(proxy))
    gold = None if gold_scores is None else float(np.asarray(gold_scores, dtype=np.float64)[rows, selected].mean())
    return BestOfN(selected, float(proxy[rows, selected].mean()), gold)


def sizes(n: int) -> list[int]:
    """Return the powers of two up to ``n``, and ``n``: where a best-of-n curve is measured."""
    return sorted({*(2**power for power in range(n.bit_length()) if 2**power <= n), n})
