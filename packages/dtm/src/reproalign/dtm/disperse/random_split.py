"""Random dispersal: a draw for each row, or equal portions."""

from __future__ import annotations

import random

import numpy as np
from numpy.typing import NDArray


def random_labels(rows: int, clusters: int, seed: int) -> NDArray[np.int64]:
    """Draw a cluster c_i for each row (R1), independently and uniformly; sizes are multinomial.

    What the release's loop intends (ERRATA Q1): Python's generator, one ``random.choice(range(K))`` per row in order.

    Args:
        rows: their number n.
        clusters: K.
        seed: of the generator.

    Returns:
        n labels in 0..K-1.
    """
    generator, ids = random.Random(seed), list(range(clusters))
    return np.fromiter((generator.choice(ids) for _ in range(rows)), np.int64, rows)


def equal_labels(rows: int, clusters: int, seed: int) -> NDArray[np.int64]:
    """Cut a random order of the rows into K portions (R1) whose sizes differ by at most one, as the paper says.

    Args:
        rows: their number n.
        clusters: K.
        seed: of the order.

    Returns:
        n labels in 0..K-1.
    """
    labels = np.empty(rows, np.int64)
    for label, portion in enumerate(np.array_split(np.random.default_rng(seed).permutation(rows), clusters)):
        labels[portion] = label
    return labels
