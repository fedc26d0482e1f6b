"""The point of smallest norm: optimality on random and adversarial matrices, and the release's solver."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from reproalign.more.min_norm import frank_wolfe, min_norm_point, optimality_gap

Vectors = NDArray[np.float64]


@st.composite
def vectors(draw: st.DrawFn) -> Vectors:
    """2 to 64 vectors: of any dimension, of lengths far apart, shifted off 0, repeated, opposed, or 0."""
    size = draw(st.integers(2, 64))
    dimension = draw(st.integers(1, 80))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    found = generator.normal(size=(size, dimension))
    found += draw(st.sampled_from([0.0, 1.0, 5.0])) * generator.normal(size=dimension)
    spread = draw(st.sampled_from([0, 1, 3]))
    found *= 10 ** generator.uniform(-spread, spread, size=(size, 1))
    for change in draw(st.lists(st.sampled_from(["same", "opposite", "zero", "nearly"]), max_size=3)):
        i, j = draw(st.integers(0, size - 1)), draw(st.integers(0, size - 1))
        nearly = found[j] * (1 + 1e-12)
        found[i] = {"same": found[j], "opposite": -found[j], "zero": 0 * found[j], "nearly": nearly}[change]
    return found


@given(vectors())
@settings(max_examples=150, deadline=None)
def test_the_point_satisfies_the_variational_inequality(found: Vectors) -> None:
    """R2: weights in the simplex, and no vertex of the hull lies lower along the point found."""
    gram = found @ found.T
    weights = min_norm_point(gram)
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    assert optimality_gap(gram, weights) <= 1e-10 * max(gram.diagonal().max(), 1e-300)


@given(vectors())
@settings(max_examples=50, deadline=None)
def test_it_is_never_longer_than_the_release_s(found: Vectors) -> None:
    gram = found @ found.T
    scale = max(gram.diagonal().max(), 1e-300)
    exact, (released, _) = min_norm_point(gram), frank_wolfe(gram)
    if released.sum():  # all pairs may be beyond the release's limit
        assert exact @ gram @ exact <= released @ gram @ released + 1e-12 * scale


@given(vectors(), st.floats(1e-6, 1e6))
@settings(max_examples=30, deadline=None)
def test_scale_and_order_change_nothing_but_scale_and_order(found: Vectors, factor: float) -> None:
    gram = found @ found.T
    scale = max(gram.diagonal().max(), 1e-300)
    weights = min_norm_point(gram)
    norm = weights @ gram @ weights
    scaled = min_norm_point(factor * gram)
    assert scaled @ gram @ scaled == pytest.approx(norm, rel=1e-9, abs=1e-12 * scale)
    turned = min_norm_point(gram[::-1, ::-1])[::-1]
    assert turned @ gram @ turned == pytest.approx(norm, rel=1e-9, abs=1e-12 * scale)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_no_point_of_a_fine_grid_is_shorter(size: int) -> None:
    found = np.random.default_rng(size).normal(size=(size, 5))
    gram = found @ found.T
    weights = min_norm_point(gram)
    steps = 20
    grid = [np.array(p) / steps for p in itertools.product(range(steps + 1), repeat=size) if sum(p) == steps]
    assert weights @ gram @ weights <= min(p @ gram @ p for p in grid) + 1e-12


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ([[1.0, 2.0]], [1.0]),
        ([[3.0, 0.0], [3.0, 0.0]], [1.0, 0.0]),
        ([[1.0, 0.0], [-1.0, 0.0]], [0.5, 0.5]),
        ([[1.0, 0.0], [-3.0, 0.0]], [0.75, 0.25]),
        ([[1.0, 0.0], [0.0, 1.0]], [0.5, 0.5]),
        ([[1.0, 0.0], [5.0, 1.0]], [1.0, 0.0]),
        ([[0.0, 0.0], [5.0, 1.0]], [1.0, 0.0]),
        ([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], [1 / 3, 1 / 3, 1 / 3]),
    ],
    ids=["one", "identical", "opposite", "unequal", "orthogonal", "vertex", "zero", "three"],
)
def test_known_points(found: list[list[float]], expected: list[float]) -> None:
    gram = np.array(found) @ np.array(found).T
    np.testing.assert_allclose(min_norm_point(gram), expected, atol=1e-12)


def test_the_release_s_weights_stay_off_the_ends_of_a_pair() -> None:
    gram = np.array([[1.0, 5.0], [5.0, 26.0]])
    assert frank_wolfe(gram)[0].tolist() == pytest.approx([0.999, 0.001])
    assert frank_wolfe(gram[::-1, ::-1])[0].tolist() == pytest.approx([0.001, 0.999])


@pytest.mark.parametrize("gram", [[[1.0, 2.0]], [], [[np.nan]], [[1.0, np.inf], [np.inf, 1.0]]])
@pytest.mark.parametrize("solve", [min_norm_point, frank_wolfe])
def test_what_is_no_gram_matrix_is_refused(solve, gram) -> None:
    with pytest.raises(ValueError, match="Gram"):
        solve(np.array(gram))
