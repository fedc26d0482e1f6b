"""Dispersal methods: what every one keeps, and what the k-means of the release computes."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans

from reproalign.common.errors import UserError
from reproalign.dtm.disperse.balanced import balanced_assignment, capacity_of
from reproalign.dtm.disperse.clustering import cluster_embeddings
from reproalign.dtm.disperse.config import KMeansConfig
from reproalign.dtm.disperse.distances import nearest
from reproalign.dtm.disperse.embeddings import Embeddings
from reproalign.dtm.disperse.labels import check_used
from reproalign.dtm.disperse.random_split import equal_labels, random_labels
from reproalign.dtm.disperse.released_kmeans import released_kmeans, sample_order, split_empty, training_rows
from reproalign.dtm.disperse.settings import ALGORITHMS


def unit_rows(rows: int, dim: int, seed: int, *, groups: int = 0, spread: float = 0.05) -> np.ndarray:
    """Random unit vectors, around some directions if ``groups``."""
    generator = np.random.default_rng(seed)
    found = generator.normal(size=(rows, dim))
    if groups:
        middles = np.linalg.qr(generator.normal(size=(dim, groups)))[0].T
        found = middles[np.arange(rows) % groups] + spread * found
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


@given(rows=st.integers(0, 300), clusters=st.integers(1, 20), seed=st.integers(0, 2**32))
def test_equal_portions_differ_by_one_row_at_most(rows, clusters, seed):
    """R1: dispersal at random gives every row one label, the same for a seed."""
    labels = equal_labels(rows, clusters, seed)
    sizes = np.bincount(labels, minlength=clusters)
    assert (len(labels), len(sizes)) == (rows, clusters)
    assert sizes.max() - sizes.min() <= 1
    np.testing.assert_array_equal(labels, equal_labels(rows, clusters, seed))


@given(rows=st.integers(0, 300), clusters=st.integers(1, 20), seed=st.integers(0, 2**32))
def test_draws_are_labels_and_do_not_depend_on_the_rows_that_follow(rows, clusters, seed):
    labels = random_labels(rows, clusters, seed)
    assert ((labels >= 0) & (labels < clusters)).all()
    np.testing.assert_array_equal(labels, random_labels(rows + 10, clusters, seed)[:rows])


@given(rows=st.integers(1, 200), seed=st.integers(0, 2**31 - 1), data=st.data())
def test_the_sampled_rows_are_the_head_of_the_whole_permutation(rows, seed, data):
    count = data.draw(st.integers(1, rows))
    generator, order = np.random.RandomState(seed), list(range(rows))
    for place in range(rows - 1):
        other = place + int(generator.randint(0, 2**32, dtype=np.uint32)) % (rows - place)
        order[place], order[other] = order[other], order[place]
    assert sample_order(rows, seed, count).tolist() == order[:count]
    assert sorted(sample_order(rows, seed, rows).tolist()) == list(range(rows))


@given(
    clusters=st.integers(1, 6),
    extra=st.integers(0, 400),
    dim=st.integers(4, 24),
    iterations=st.sampled_from([1, 3, 25, 200]),
    spherical=st.booleans(),
    seed=st.integers(0, 10_000),
)
def test_released_kmeans_is_that_of_faiss(clusters, extra, dim, iterations, spherical, seed):
    """R1: labels and centroids, on the subset that faiss would take; rows at a tie, to rounding, are not compared."""
    rows = unit_rows(clusters + extra, dim, seed)
    theirs = faiss.Kmeans(
        dim, clusters, niter=iterations, spherical=spherical, max_points_per_centroid=32, min_points_per_centroid=1
    )
    theirs.train(rows)
    subset = rows[training_rows(len(rows), clusters, 32, 1234)]
    ours = released_kmeans(subset, clusters, iterations=iterations, spherical=spherical)
    np.testing.assert_allclose(ours.centroids, theirs.centroids, atol=1e-5)
    labels, distances = nearest(rows, ours.centroids), np.sort(((rows[:, None] - ours.centroids) ** 2).sum(-1))
    clear = distances[:, 1] - distances[:, 0] > 1e-5 if clusters > 1 else np.ones(len(rows), bool)
    np.testing.assert_array_equal(labels[clear], theirs.index.search(rows, 1)[1][clear, 0])


@given(clusters=st.integers(2, 6), seed=st.integers(0, 10_000))
def test_with_its_subset_and_start_scikit_learn_finds_the_same(clusters, seed):
    rows = unit_rows(clusters * 60, 16, seed, groups=clusters)
    subset = rows[training_rows(len(rows), clusters, 32, 1234)]
    start = subset[sample_order(len(subset), 1235, clusters)]
    theirs = KMeans(clusters, init=start, n_init=1, tol=0, max_iter=1500, algorithm="lloyd").fit(subset)
    ours = released_kmeans(subset, clusters)
    if ours.splits == 0:  # scikit-learn refills an empty cluster with a far row, faiss by a split
        np.testing.assert_allclose(ours.centroids, theirs.cluster_centers_, atol=1e-5)
        np.testing.assert_array_equal(nearest(rows, ours.centroids), theirs.predict(rows))


def test_an_empty_cluster_gets_half_of_another():
    centroids = np.array([[1.0, 2.0], [0.0, 0.0], [3.0, 4.0]], np.float32)
    before = centroids.copy()
    assert split_empty(centroids, np.array([9, 0, 1]), 10) == 1
    up, down = 1 + 1 / 1024, 1 - 1 / 1024
    np.testing.assert_allclose(centroids[1], before[0] * [up, down], rtol=1e-6)
    np.testing.assert_allclose(centroids[0], before[0] * [down, up], rtol=1e-6)
    np.testing.assert_array_equal(centroids[2], before[2])


def test_as_many_rows_as_clusters_are_the_centroids():
    rows = unit_rows(5, 3, 0)
    assert (released_kmeans(rows, 5).centroids == rows).all()


@given(
    rows=st.integers(1, 60),
    clusters=st.integers(1, 6),
    dim=st.integers(2, 6),
    copies=st.booleans(),
    seed=st.integers(0, 999),
)
def test_balanced_assignment_is_the_best_there_is(rows, clusters, dim, copies, seed):
    """Against the Hungarian method on as many copies of each cluster as it has room."""
    vectors = unit_rows(rows, dim, seed)
    if copies:
        vectors = vectors[np.random.default_rng(seed).integers(0, max(1, rows // 4), rows)]
    costs = ((vectors[:, None] - unit_rows(clusters, dim, seed + 1)) ** 2).sum(-1).astype(np.float64)
    found = balanced_assignment(costs)
    capacity = capacity_of(rows, clusters)
    assert np.bincount(found.labels, minlength=clusters).max() <= capacity
    room = np.repeat(costs, capacity, axis=1)
    best = room[linear_sum_assignment(room)].sum()
    assert found.cost == pytest.approx(best, rel=1e-6, abs=1e-9)
    assert found.bound <= best + 1e-9


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_labels_every_row_and_finds_clear_groups(algorithm):
    """R1: k-means, whatever the algorithm and however rows are stored."""
    rows = unit_rows(400, 12, 3, groups=4)
    shards = Embeddings([rows[:150], rows[150:390], rows[390:]])
    found = cluster_embeddings(shards, 4, KMeansConfig(algorithm=algorithm), seed=5)
    assert found.labels.shape == (400,)
    assert found.facts["inertia"] == pytest.approx(((rows - found.centroids[found.labels]) ** 2).sum(), rel=1e-4)
    if algorithm not in ("released", "faiss"):  # these start from random rows
        groups = found.labels.reshape(100, 4)
        assert (groups == groups[0]).all()
        assert len(set(groups[0].tolist())) == 4
    again = cluster_embeddings(Embeddings([rows]), 4, KMeansConfig(algorithm=algorithm), seed=5)
    np.testing.assert_array_equal(found.labels, again.labels)


def test_balanced_sizes_of_groups_that_are_not():
    rows = unit_rows(303, 8, 1)
    rows[:200] = unit_rows(200, 8, 2, groups=1)
    found = cluster_embeddings(Embeddings([rows]), 4, KMeansConfig(algorithm="balanced"), seed=0)
    assert np.bincount(found.labels).tolist() == [76, 76, 76, 75] or np.bincount(found.labels).max() == 76
    assert found.facts["optimality_gap"] <= 1e-6


def test_faiss_itself_can_be_the_back_end():
    rows = Embeddings([unit_rows(900, 10, 4)])
    ours = cluster_embeddings(rows, 3, KMeansConfig(algorithm="released"), seed=0)
    theirs = cluster_embeddings(rows, 3, KMeansConfig(algorithm="released", backend="faiss"), seed=0)
    np.testing.assert_array_equal(ours.labels, theirs.labels)
    assert ours.facts["seen"] == theirs.facts["seen"] == 768


def test_fewer_rows_than_clusters():
    with pytest.raises(UserError, match="clusters=4, but there are only 3 rows"):
        cluster_embeddings(Embeddings([unit_rows(3, 4, 0)]), 4, KMeansConfig(algorithm="lloyd"), seed=0)


def test_a_cluster_without_rows_is_named():
    with pytest.raises(UserError, match="method=random: no row is in cluster 1, 3 of clusters=4"):
        check_used(np.array([0, 2, 2]), 4, "method=random")
