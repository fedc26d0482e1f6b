"""Label files: one JSON array, the cluster of row i at index i."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reproalign.common.errors import UserError
from reproalign.common.files import write_text

LABELS = "labels.json"


def write_labels(path: Path, labels: NDArray[np.int64]) -> None:
    """Write labels as the release does: one array of integers on one line."""
    write_text(path, json.dumps(labels.tolist()) + "\n")


def read_given_labels(path: Path, rows: int, clusters: int) -> NDArray[np.int64]:
    """Read the labels that a user gives for ``rows`` rows.

    Raises:
        UserError: if the file is no JSON array of ``rows`` integers in 0..K-1, or a cluster has no row.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"labels={path}: cannot be read ({error.strerror}); check the path") from error
    except ValueError as error:
        raise UserError(f"labels={path}: not valid JSON ({error}); give one array of integers") from error
    if not isinstance(values, list):
        raise UserError(f"labels={path}: one JSON array of integers is needed, label i of row i")
    for place, value in enumerate(values):
        if not isinstance(value, int) or isinstance(value, bool):
            raise UserError(f"labels={path}: label {place} is {json.dumps(value)[:40]}; every label must be an integer")
        if not 0 <= value < clusters:
            raise UserError(f"labels={path}: label {place} is {value}; clusters={clusters} has 0 to {clusters - 1}")
    if len(values) != rows:
        raise UserError(f"labels={path}: {len(values)} labels for {rows} rows; one for each row is needed")
    labels = np.asarray(values, np.int64)
    check_used(labels, clusters, f"labels={path}")
    return labels


def check_used(labels: NDArray[np.int64], clusters: int, origin: str) -> None:
    """Refuse clusters without rows, on which nothing could be trained.

    Raises:
        UserError: naming them.
    """
    empty = [str(cluster) for cluster, size in enumerate(np.bincount(labels, minlength=clusters)) if not size]
    if empty:
        raise UserError(f"{origin}: no row is in cluster {', '.join(empty)}; lower clusters={clusters}")
