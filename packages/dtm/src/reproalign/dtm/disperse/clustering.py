"""K-means dispersal: centroids by one of several algorithms, then every row to its nearest centroid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import NDArray

from reproalign.common.console import note_console
from reproalign.common.errors import UserError
from reproalign.dtm.disperse.balanced import balanced_assignment
from reproalign.dtm.disperse.config import KMeansConfig
from reproalign.dtm.disperse.distances import means, nearest, squared_distances
from reproalign.dtm.disperse.embeddings import Embeddings
from reproalign.dtm.disperse.released_kmeans import FAISS_SEED, released_kmeans, training_rows

POINTS_PER_CLUSTER = 256  # faiss's default
ITERATIONS = {"released": 1500, "faiss": 1500, "lloyd": 300, "minibatch": 100, "balanced": 100}

Centroids = Float[NDArray[np.float32], "clusters dim"]


@dataclass(frozen=True)
class RowClustering:
    """A clustering of all rows.

    Attributes:
        labels: of the rows, 0..K-1.
        centroids: in the space of the normalised embeddings; they have no unit length themselves.
        facts: how it was found, for the record.
    """

    labels: Int[NDArray[np.int64], " rows"]
    centroids: Centroids
    facts: dict[str, Any]


def cluster_embeddings(embeddings: Embeddings, clusters: int, options: KMeansConfig, *, seed: int) -> RowClustering:
    """Cluster normalised embeddings into K clusters (R1).

    Every algorithm finds centroids; then each row goes to the nearest one in Euclidean distance, argmin_k ‖x − c_k‖²
    (``balanced``: to the one that the capacities leave it). The same seed gives the same labels: the libraries run on
    one thread, whose order of summation is fixed.

    Args:
        embeddings: of n rows.
        clusters: K.
        options: ``algorithm`` resolved; the rest as given.
        seed: of the start, unless the options have one.

    Raises:
        UserError: for fewer rows than clusters, and for embeddings without direction.
    """
    if len(embeddings) < clusters:
        raise UserError(
            f"clusters={clusters}, but there are only {len(embeddings)} rows; set a lower number of clusters"
        )
    algorithm = str(options.algorithm)
    iterations = options.iterations or ITERATIONS[algorithm]
    chosen = options.seed if options.seed is not None else FAISS_SEED if algorithm == "released" else seed
    with note_console().status(f"k-means ({algorithm}) of {len(embeddings)} rows"):
        if algorithm == "balanced":
            labels, centroids, facts = _balanced(embeddings, clusters, options, iterations, chosen)
        else:
            centroids, facts = CENTROIDS[algorithm](embeddings, clusters, options, iterations, chosen)
            labels = np.concatenate([nearest(chunk, centroids) for _, chunk in embeddings.chunks()])
    measured = measure(embeddings, centroids, labels)
    return RowClustering(
        labels, centroids, {"algorithm": algorithm, "iterations": iterations, "seed": chosen, **facts, **measured}
    )


def measure(embeddings: Embeddings, centroids: Centroids, labels: Int[NDArray[np.int64], " rows"]) -> dict[str, Any]:
    """Return the inertia, Σ_i ‖x_i − c‖² with each row's own centroid c, and how many rows another rule would move.

    The paper speaks of cosine distance, the release computes Euclidean ones to centroids that are no unit vectors:
    ``cosine_differs`` counts the rows whose centroid of the largest cosine is not their own.
    """
    inertia, differs = 0.0, 0
    unit = centroids / np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    for start, chunk in embeddings.chunks():
        own = labels[start : start + len(chunk)]
        inertia += float(np.square(chunk - centroids[own]).sum(dtype=np.float64))
        differs += int(((chunk @ unit.T).argmax(axis=1) != own).sum())
    return {"inertia": inertia, "cosine_differs": differs}


def _released(
    embeddings: Embeddings, clusters: int, options: KMeansConfig, iterations: int, seed: int
) -> tuple[Centroids, dict[str, Any]]:
    seen = training_rows(len(embeddings), clusters, options.points_per_cluster or POINTS_PER_CLUSTER, seed)
    rows = embeddings.take(seen)
    if options.backend == "faiss":
        # The subset is faiss's own: given it in that order, faiss does not draw again.
        return _faiss_centroids(rows, clusters, options, iterations, seed), {"seen": len(seen)}
    found = released_kmeans(rows, clusters, iterations=iterations, seed=seed, spherical=options.spherical)
    return found.centroids, {"seen": len(seen), "iterations_done": found.iterations, "splits": found.splits}


def _faiss(
    embeddings: Embeddings, clusters: int, options: KMeansConfig, iterations: int, seed: int
) -> tuple[Centroids, dict[str, Any]]:
    return _faiss_centroids(embeddings.load(), clusters, options, iterations, seed), {"seen": len(embeddings)}


def _faiss_centroids(
    rows: Float[NDArray[np.float32], "rows dim"], clusters: int, options: KMeansConfig, iterations: int, seed: int
) -> Centroids:
    import faiss
    from threadpoolctl import threadpool_limits

    kmeans = faiss.Kmeans(
        rows.shape[1],
        clusters,
        niter=iterations,
        nredo=options.restarts,
        seed=seed,
        spherical=options.spherical,
        min_points_per_centroid=1,  # below its default of 39 faiss only warns
        max_points_per_centroid=-(-len(rows) // clusters),
    )
    with threadpool_limits(1):
        kmeans.train(rows)
    return np.asarray(kmeans.centroids, np.float32)


def _lloyd(
    embeddings: Embeddings, clusters: int, options: KMeansConfig, iterations: int, seed: int
) -> tuple[Centroids, dict[str, Any]]:
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    # tol=0: until labels repeat; for any other tolerance scikit-learn copies all rows to take their variance.
    made = KMeans(clusters, n_init=options.restarts, max_iter=iterations, tol=0, random_state=seed, copy_x=False)
    with threadpool_limits(1):
        made.fit(embeddings.load())
    facts = {"seen": len(embeddings), "iterations_done": int(made.n_iter_)}
    return made.cluster_centers_.astype(np.float32), facts


def _minibatch(
    embeddings: Embeddings, clusters: int, options: KMeansConfig, iterations: int, seed: int
) -> tuple[Centroids, dict[str, Any]]:
    from sklearn.cluster import MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    made = MiniBatchKMeans(clusters, n_init=options.restarts, max_iter=iterations, random_state=seed)
    with threadpool_limits(1):
        made.fit(embeddings.load())
    facts = {"seen": len(embeddings), "iterations_done": int(made.n_iter_)}
    return made.cluster_centers_.astype(np.float32), facts


def _balanced(
    embeddings: Embeddings, clusters: int, options: KMeansConfig, iterations: int, seed: int
) -> tuple[Int[NDArray[np.int64], " rows"], Centroids, dict[str, Any]]:
    """Alternate between the best assignment within the capacities and the means of its clusters, from Lloyd's."""
    centroids, _ = _lloyd(embeddings, clusters, options, ITERATIONS["lloyd"], seed)
    labels, done, gap = np.full(len(embeddings), -1), 0, 0.0
    while done < iterations:
        done += 1
        costs = np.concatenate([squared_distances(chunk, centroids) for _, chunk in embeddings.chunks()])
        before, (labels, gap) = labels, _assigned(costs + 1.0)  # rows are unit vectors: ‖x − c‖² = 1 + ‖c‖² − 2 x·c
        centroids = streamed_means(embeddings, labels, clusters)
        if np.array_equal(before, labels):
            break
    return labels, centroids, {"seen": len(embeddings), "iterations_done": done, "optimality_gap": gap}


def _assigned(costs: Float[NDArray[Any], "rows clusters"]) -> tuple[Int[NDArray[np.int64], " rows"], float]:
    found = balanced_assignment(costs.astype(np.float64))
    return found.labels, found.gap


def streamed_means(embeddings: Embeddings, labels: Int[NDArray[np.int64], " rows"], clusters: int) -> Centroids:
    """Return the mean of each cluster, which has rows, with the memory of one shard."""
    total = np.zeros((clusters, embeddings.dim))
    for start, chunk in embeddings.chunks():
        found, sizes = means(chunk, labels[start : start + len(chunk)], clusters)
        total += found * sizes[:, None]
    return (total / np.bincount(labels, minlength=clusters)[:, None]).astype(np.float32)


CENTROIDS: dict[str, Callable[[Embeddings, int, KMeansConfig, int, int], tuple[Centroids, dict[str, Any]]]] = {
    "released": _released,
    "lloyd": _lloyd,
    "minibatch": _minibatch,
    "faiss": _faiss,
}
