"""The k-means of the release: ``faiss.Kmeans(d, K, niter)`` with faiss's defaults, in NumPy.

What makes its result: the rows it sees are a random subset of 256 K (1,024 of TÜLU's 326,154 at K = 4), it starts from
random rows of them, empty clusters are refilled by splitting others, and centroids of unit vectors are no unit vectors.
All draws are Mersenne Twister outputs (MT19937), so that the clusters are those of faiss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from reproalign.common.errors import UserError
from reproalign.dtm.disperse.distances import means, nearest

FAISS_SEED = 1234
EPSILON = np.float32(1 / 1024)  # by which the two halves of a split cluster differ


@dataclass(frozen=True)
class Clustering:
    """Centroids, and how they were found.

    Attributes:
        centroids: K rows.
        iterations: until nothing changed, or the most allowed.
        splits: empty clusters refilled, over all iterations.
        seen: rows that were clustered.
    """

    centroids: Float[NDArray[np.float32], "clusters dim"]
    iterations: int
    splits: int
    seen: int


def sample_order(rows: int, seed: int, count: int) -> NDArray[np.int64]:
    """Return the first ``count`` entries of faiss's random permutation of ``rows`` numbers.

    For i = 0, 1, …: entry i is swapped with entry i + (u mod (n − i)), u the next 32-bit output of MT19937(seed). An
    entry is final after its own swap, so that the rest need not be drawn.
    """
    draws = np.random.RandomState(seed).randint(0, 2**32, size=min(count, max(rows - 1, 0)), dtype=np.uint32)
    moved: dict[int, int] = {}
    order = np.arange(count)
    for place, draw in enumerate(draws.tolist()):
        other = place + draw % (rows - place)
        order[place] = moved.get(other, other)
        moved[other] = moved.get(place, place)
    if count == rows and rows:
        order[-1] = moved.get(rows - 1, rows - 1)
    return order


def training_rows(rows: int, clusters: int, points_per_cluster: int | None, seed: int) -> NDArray[np.int64]:
    """Return the rows that k-means sees: all in order, or the random subset of ``points_per_cluster`` K of them.

    Raises:
        UserError: for fewer rows than clusters.
    """
    if rows < clusters:
        raise UserError(f"clusters={clusters}, but there are only {rows} rows; set a lower number of clusters")
    most = rows if points_per_cluster is None else points_per_cluster * clusters
    return np.arange(rows) if rows <= most else sample_order(rows, seed, most)


def released_kmeans(
    rows: Float[NDArray[np.float32], "rows dim"],
    clusters: int,
    *,
    iterations: int = 1500,
    seed: int = FAISS_SEED,
    spherical: bool = False,
    advance: Callable[[], None] = lambda: None,
) -> Clustering:
    """Cluster rows as faiss does with its defaults (initial rows perm(n, seed + 1), Lloyd's iterations, splits).

    It ends early once labels repeat and no cluster is empty: nothing would change any more.

    Args:
        rows: finite; those of :func:`training_rows`.
        clusters: K, at most the number of rows; as many as rows: the rows are the centroids.
        iterations: at most.
        seed: faiss's.
        spherical: scale centroids to length 1, as faiss's option of that name.
        advance: called after every iteration.
    """
    count = len(rows)
    if count == clusters:
        return Clustering(rows.copy(), 0, 0, count)
    centroids = _scaled(rows[sample_order(count, seed + 1, clusters)], spherical)
    labels, splits, done = np.full(count, -1), 0, 0
    while done < iterations:
        done += 1
        before, labels = labels, nearest(rows, centroids)
        centroids, sizes = means(rows, labels, clusters)
        refilled = split_empty(centroids, sizes, count)
        centroids = _scaled(centroids, spherical)
        splits += refilled
        advance()
        if not refilled and np.array_equal(before, labels):
            break
    return Clustering(centroids, done, splits, count)


def split_empty(centroids: Float[NDArray[np.float32], "clusters dim"], sizes: NDArray[np.int64], rows: int) -> int:
    """Refill every empty cluster, in order, with half of another, in place; return how many there were.

    The other one is drawn by walking around the clusters: j is taken with probability (size_j − 1) / (n − K). Its
    centroid is copied; even components of the copy are multiplied by 1 + 1/1024 and odd ones by 1 − 1/1024, those of
    the other one the opposite way.
    """
    generator = np.random.RandomState(FAISS_SEED)
    clusters, dim = centroids.shape
    weights = sizes.astype(np.float32)
    factor = np.where(np.arange(dim) % 2 == 0, 1 + EPSILON, 1 - EPSILON).astype(np.float32)
    opposite = np.where(np.arange(dim) % 2 == 0, 1 - EPSILON, 1 + EPSILON).astype(np.float32)
    empty = np.flatnonzero(weights == 0)
    for cluster in empty:
        other = 0
        while not _draw(generator) < (weights[other] - 1) / np.float32(rows - clusters):
            other = (other + 1) % clusters
        centroids[cluster] = centroids[other] * factor
        centroids[other] *= opposite
        weights[cluster] = weights[other] / 2
        weights[other] -= weights[cluster]
    return len(empty)


def _draw(generator: np.random.RandomState) -> np.float32:
    output = int(generator.randint(0, 2**32, dtype=np.uint32))
    return np.float32(output) / np.float32(2**32 - 1)


def _scaled(centroids: Float[NDArray[np.float32], "clusters dim"], spherical: bool) -> NDArray[np.float32]:
    if not spherical:
        return centroids
    scaled: NDArray[np.float32] = centroids / np.linalg.norm(centroids, axis=1, keepdims=True)
    return scaled
