"""Labels of a dispersal: written, and taken from the user."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reproalign.common.errors import UserError
from reproalign.common.files import write_text
from reproalign.dtm.rows import read_labels


def write_labels(path: Path, labels: NDArray[np.int64]) -> None:
    """Write labels as the release does: one JSON array of integers."""
    write_text(path, json.dumps(labels.tolist()))


def given_labels(path: str, rows: int, clusters: int) -> NDArray[np.int64]:
    """Read the labels that a user gives for ``rows`` rows.

    Raises:
        UserError: if the file is no JSON array of ``rows`` integers in 0..K-1.
    """
    labels = read_labels(path, rows)
    beyond = np.flatnonzero(labels >= clusters)
    if len(beyond):
        raise UserError(
            f"labels: {path}: label {beyond[0]} is {labels[beyond[0]]}, but clusters={clusters} has the ids 0 to "
            f"{clusters - 1}; correct one of the two"
        )
    return labels


def check_used(labels: NDArray[np.int64], clusters: int, origin: str) -> None:
    """Refuse clusters without rows, on which nothing could be trained.

    Args:
        labels: of all rows.
        clusters: K.
        origin: the option that they come from.

    Raises:
        UserError: naming the empty clusters.
    """
    empty = [str(cluster) for cluster, size in enumerate(np.bincount(labels, minlength=clusters)) if not size]
    if empty:
        raise UserError(
            f"{origin}: no row is in cluster {', '.join(empty)} of clusters={clusters}; set a lower number of clusters"
        )
