r"""The point of smallest norm in the convex hull of K vectors, from their Gram matrix M = V Vᵀ:

    min over λ ≥ 0, Σ λ_k = 1 of  λᵀ M λ            (R2, the paper's appendix B)

At the minimum every vector makes at least the angle that the point x = Vᵀλ makes with itself (variational inequality):

    (Mλ)_k ≥ λᵀMλ  for all k                                                                                   (VI)

K is the number of domains, so these are small matrices: both solvers run on the host in float64.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

TOLERANCE = 1e-12  # of the cosine by which (VI) may fail
ROUNDING = 8 * np.finfo(np.float64).eps  # of products in a matrix scaled to 1
PAIR_LIMIT = 1e8  # released: pairs of vectors whose hull is farther from 0 are not looked at
CLAMP = 0.999  # released: weight of the better end where a segment's nearest point is an end


def min_norm_point(gram: ArrayLike) -> Floats:
    r"""Return λ (R2) by Wolfe's method (Mathematical Programming 11, 1976): exact but for rounding, in finite time.

    A set S of affinely independent vectors is kept, with λ the minimum over its *affine* hull. As long as some vector
    breaks (VI), the worst joins S; where the new minimum has a negative weight, one walks towards it until a weight is
    0, and drops that vector.

    The method runs on a square root of M, whose rows are the vectors but for a rotation: squared lengths near 0, as
    where 0 lies in the hull, would drown in the rounding of M itself.

    Args:
        gram: (K, K), symmetric and positive semidefinite, K ≥ 1.

    Returns:
        (K,) weights. (VI) holds up to 1e-12 ‖x‖ ‖v_k‖, or the rounding of M where that is more.

    Raises:
        ValueError: for another shape, values that are not finite, or a matrix that is not symmetric.
    """
    matrix = _checked(gram)
    size = len(matrix)
    scale = max(float(matrix.diagonal().max()), np.finfo(np.float64).tiny)
    lengths = np.sqrt(matrix.diagonal().clip(min=0) / scale)
    unit = np.where(
        lengths > 0, lengths, 1.0
    )  # the root of unit vectors' matrix: short vectors would drown in long ones
    values, basis = np.linalg.eigh(matrix / scale / unit[:, None] / unit)
    vectors: Floats = lengths[:, None] * basis * np.sqrt(values.clip(min=0))
    corral = [int(lengths.argmin())]
    weights = np.eye(size)[corral[0]]
    best, least = weights, np.inf
    # No corral is met twice, and few are met at all; the bound is against rounding.
    for _ in range(20 * size):
        point = weights @ vectors
        norm = float(np.linalg.norm(point))
        if norm >= least:
            break
        best, least = weights, norm
        slack = vectors @ point - norm**2 + TOLERANCE * norm * lengths
        slack[corral] = 0.0
        worst = int(slack.argmin())
        if slack[worst] >= -ROUNDING * norm:
            break
        weights, corral = _descend(vectors, weights, [*corral, worst])
    found: Floats = best / best.sum()
    return found


def _descend(vectors: Floats, weights: Floats, corral: list[int]) -> tuple[Floats, list[int]]:
    """Return the minimum over the hull of some of ``corral``, reached from ``weights`` without going up."""
    while True:
        target = np.zeros_like(weights)
        target[corral] = _affine_minimum(vectors[corral])
        if (target[corral] > 0).all():
            return target, corral
        down = [k for k in corral if target[k] <= 0]
        steps = [weights[k] / (weights[k] - target[k]) if weights[k] > target[k] else 0.0 for k in down]
        weights = weights + min(steps) * (target - weights)
        weights[down[int(np.argmin(steps))]] = 0.0
        corral = [k for k in corral if weights[k] > 0]
        if len(corral) == 1:
            return np.eye(len(weights))[corral[0]], corral


def _affine_minimum(vectors: Floats) -> Floats:
    """Weights, of any sign, of the point of smallest norm in the affine hull."""
    first, *others = vectors
    if not others:
        return np.ones(1)
    # Least squares: vectors that coincide up to rounding have no unique weights.
    rest = np.linalg.lstsq((np.array(others) - first).T, -first, rcond=None)[0]
    return np.concatenate([[1 - rest.sum()], rest])


def frank_wolfe(gram: ArrayLike, *, max_steps: int = 1000, stop: float = 1e-5) -> tuple[Floats, float]:
    """Return λ (R2) and ‖x‖² as the release finds them: Frank-Wolfe from the best pair, line search towards a vertex.

    A segment's nearest point is never nearer than 0.001 to one of its ends (:func:`_segment`). Once a step changes λ by
    less than ``stop`` in the 1-norm, the point *before* that step is returned, with the squared norm after it.

    Args:
        gram: (K, K), K ≥ 1; the release needs two.
        max_steps: after the first pair.
        stop: see above.

    Raises:
        ValueError: as :func:`min_norm_point`.
    """
    matrix = _checked(gram)
    size = len(matrix)
    if size == 1:
        return np.ones(1), float(matrix[0, 0])
    least, weights = PAIR_LIMIT, np.zeros(size)
    for i in range(size):
        for j in range(i + 1, size):
            share, cost = _segment(matrix[i, i], matrix[i, j], matrix[j, j])
            if cost < least:
                least, weights = cost, np.zeros(size)
                weights[i], weights[j] = share, 1 - share
    if size == 2:
        return weights, least
    for _ in range(max_steps):
        products = matrix @ weights
        vertex = int(products.argmin())
        share, least = _segment(float(weights @ products), float(products[vertex]), float(matrix[vertex, vertex]))
        moved = share * weights
        moved[vertex] += 1 - share
        if np.abs(moved - weights).sum() < stop:
            break
        weights = moved
    return weights, least


def _segment(a: float, b: float, c: float) -> tuple[float, float]:
    """Return γ and ‖γu + (1 - γ)v‖² of the nearest point, from a = u·u, b = u·v, c = v·v."""
    if b >= a:
        return CLAMP, a
    if b >= c:
        return 1 - CLAMP, c
    share = (c - b) / (a + c - 2 * b)
    return share, c + share * (b - c)


def optimality_gap(gram: ArrayLike, weights: ArrayLike) -> float:
    """Return max_k λᵀMλ - (Mλ)_k: how far (VI) fails; not negative, and 0 at the minimum."""
    matrix, point = np.asarray(gram, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    products = matrix @ point
    return float(point @ products - products.min())


def _checked(gram: ArrayLike) -> Floats:
    matrix = np.asarray(gram, dtype=np.float64)
    if matrix.ndim != 2 or not len(matrix) or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"a Gram matrix is square, got shape {matrix.shape}")
    if not np.isfinite(matrix).all():
        raise ValueError("the Gram matrix holds values that are not finite")
    if not np.allclose(matrix, matrix.T, rtol=1e-4, atol=1e-6 * float(np.abs(matrix).max())):
        raise ValueError("a Gram matrix is symmetric, and this one is not; give V Vᵀ of the vectors V")
    return (matrix + matrix.T) / 2
