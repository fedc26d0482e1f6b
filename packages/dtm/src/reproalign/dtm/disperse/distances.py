"""Distances of rows to centroids, with a few numbers of memory per row."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

Vectors = Float[NDArray[np.float32], "rows dim"]
Centroids = Float[NDArray[np.float32], "clusters dim"]


def squared_distances(rows: Vectors, centroids: Centroids) -> Float[NDArray[np.float32], "rows clusters"]:
    """Return ‖x − c‖² of every row x and centroid c, less ‖x‖²: ‖c‖² − 2 x·c, which has the same order in c."""
    distances: NDArray[np.float32] = np.einsum("kd,kd->k", centroids, centroids) - 2 * (rows @ centroids.T)
    return distances


def nearest(rows: Vectors, centroids: Centroids) -> Int[NDArray[np.int64], " rows"]:
    """Return the index of each row's nearest centroid in Euclidean distance; of equal ones the lowest."""
    labels: NDArray[np.int64] = squared_distances(rows, centroids).argmin(axis=1)
    return labels


def means(rows: Vectors, labels: Int[NDArray[np.int64], " rows"], clusters: int) -> tuple[Centroids, NDArray[np.int64]]:
    """Return the mean of each cluster's rows (zeros for an empty one), and the sizes.

    Rows are added up in order in float32 and multiplied by 1/size, as faiss does, so that the result is its to the bit.
    """
    sizes = np.bincount(labels, minlength=clusters)
    centroids = np.zeros((clusters, rows.shape[1]), np.float32)
    for cluster in np.flatnonzero(sizes):
        centroids[cluster] = rows[labels == cluster].sum(axis=0) * (np.float32(1) / np.float32(sizes[cluster]))
    return centroids, sizes
