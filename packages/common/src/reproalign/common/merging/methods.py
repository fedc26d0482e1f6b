"""How weights are combined, as pure functions on tensors: one function per equation.

Notation: θ_j are the weights of model j, θ_0 those of the base, τ_j = θ_j - θ_0 its task vector, w_j a weight. All
functions but :func:`regmean` act entry by entry, so that they may be called on any slice of a tensor and give the same
bits. They compute in the dtype of what they are given; none changes its inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Entries = Float[Tensor, "*entries"]


def linear(tensors: Sequence[Entries], weights: Sequence[float]) -> Entries:
    """Weighted sum Σ_j w_j θ_j (model soups, arXiv 2203.05482, Eq. 1 with weights; AMA R1, DTM R3).

    A weight of exactly 0 leaves its tensor out, infinities and NaN included; a single tensor of weight 1 is returned
    as it is, bit for bit. Part-wise averages are this with the weights of the tensor's block.
    """
    active = [(tensor, weight) for tensor, weight in zip(tensors, weights, strict=True) if weight != 0]
    if not active:
        return torch.zeros_like(tensors[0])
    if len(active) == 1 and active[0][1] == 1:
        return active[0][0]
    first, weight = active[0]
    total = first * weight
    for tensor, weight in active[1:]:
        total.add_(tensor, alpha=weight)
    return total


def linear_rounded(tensors: Sequence[Entries], weights: Sequence[float]) -> Entries:
    """:func:`linear` as scripts on 16-bit state dicts compute it: every product and every sum is rounded.

    ``a * first + b * second`` in the tensors' dtype; a weight keeps its own precision. Only for bit-equality with such
    scripts: in bfloat16 each of the roundings loses up to 2⁻⁹ of the value.
    """
    total = tensors[0] * weights[0]
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        total = total + tensor * weight
    return total


def task_arithmetic_weights(weights: Sequence[float], scale: float) -> tuple[float, ...]:
    """Return the weights of (θ_0, θ_1, …) for θ_0 + λ Σ_j w_j τ_j (task arithmetic, arXiv 2212.04089, Section 2).

    The sum is λ-linear in the weights of the models, so :func:`linear` computes it without forming task vectors:
    θ_0 has the weight 1 - λ Σ_j w_j and θ_j has λ w_j. λ w = 1 for one model returns that model bit for bit.
    """
    scaled = tuple(scale * weight for weight in weights)
    return (1.0 - sum(scaled), *scaled)


def slerp_weights(t: float, dot: float, first_norm: float, second_norm: float) -> tuple[float, float]:
    """Return the weights of two tensors for spherical interpolation (Shoemake 1985, Section 3.3).

    With Ω the angle between the flattened tensors, the weights are sin((1-t)Ω)/sin Ω and sin(tΩ)/sin Ω. Tensors that
    are (anti-)parallel within 1e-6 of |cos Ω| = 1, or zero, are interpolated linearly: the formula has no direction.

    Args:
        t: position, 0 (the first) to 1 (the second).
        dot: inner product of the two flattened tensors.
        first_norm: Euclidean norm of the first.
        second_norm: Euclidean norm of the second.
    """
    if t in (0.0, 1.0):
        return 1.0 - t, float(t)
    scale = first_norm * second_norm
    cosine = torch.tensor(dot / scale if scale > 0 else 1.0, dtype=torch.float64).clamp(-1, 1)
    if cosine.abs() > 1 - 1e-6:
        return 1.0 - t, t
    angle = torch.arccos(cosine)
    first, second = torch.sin((1 - t) * angle), torch.sin(t * angle)
    return float(first / torch.sin(angle)), float(second / torch.sin(angle))


def trim(task_vector: Entries, threshold: float) -> Entries:
    """Keep the entries of a task vector whose magnitude reaches ``threshold``; the others become 0.

    TIES, step 1 (arXiv 2306.01708, Section 4.2: keep the top-k % by magnitude). Entries of equal magnitude at the
    threshold are all kept, so that no order of entries matters.
    """
    # hardshrink keeps what is strictly above its bound.
    bound = torch.nextafter(torch.tensor(threshold, dtype=task_vector.dtype), torch.zeros((), dtype=task_vector.dtype))
    return torch.nn.functional.hardshrink(task_vector, float(bound))


def elect_signs(task_vectors: Sequence[Entries], weights: Sequence[float]) -> Entries:
    """Sign of the weighted sum, γ = sgn(Σ_j w_j τ_j) (TIES, step 2, arXiv 2306.01708, Section 4.2): -1, 0 or 1."""
    return linear(task_vectors, weights).sign()


def disjoint_mean(
    task_vectors: Sequence[Entries], signs: Entries, weights: Sequence[float], *, normalize: bool = True
) -> Entries:
    """Mean of the entries whose sign is the elected one (TIES, step 3, arXiv 2306.01708, Section 4.2).

    τ = Σ_{j: sgn τ_j = γ} w_j τ_j / Σ_{j: sgn τ_j = γ} w_j, and 0 where none agrees or γ = 0.

    Args:
        task_vectors: trimmed τ_j.
        signs: γ, see :func:`elect_signs`.
        weights: w_j; the paper's are equal.
        normalize: divide by the sum of the agreeing weights; otherwise the sum alone.
    """
    total = torch.zeros_like(signs)
    divisor = torch.zeros_like(signs)
    for task_vector, weight in zip(task_vectors, weights, strict=True):
        # |τ_j| where the sign is the elected one, else 0; products with -1, 0 and 1 are exact.
        aligned = (task_vector * signs).relu_()
        total.add_(aligned, alpha=weight)
        divisor.add_(aligned.sign_(), alpha=weight)
    if normalize:
        total /= divisor + (1 - divisor.sign().abs_())
    return total.mul_(signs)


def ties(
    base: Entries,
    task_vectors: Sequence[Entries],
    thresholds: Sequence[float],
    weights: Sequence[float],
    *,
    scale: float = 1.0,
    normalize: bool = True,
) -> Entries:
    """TIES-merging, θ_0 + λ · disjoint mean of the trimmed task vectors (arXiv 2306.01708, Algorithm 1).

    Args:
        base: θ_0.
        task_vectors: τ_j.
        thresholds: least magnitude that survives in each τ_j, see :func:`trim`.
        weights: w_j.
        scale: λ.
        normalize: see :func:`disjoint_mean`.
    """
    trimmed = [trim(vector, threshold) for vector, threshold in zip(task_vectors, thresholds, strict=True)]
    return base + scale * disjoint_mean(trimmed, elect_signs(trimmed, weights), weights, normalize=normalize)


def drop_and_rescale(task_vector: Entries, keep: Bool[Tensor, "*entries"], density: float) -> Entries:
    """DARE's sparse task vector, m ⊙ τ / (1 - p) (arXiv 2311.03099, Eq. 2-4).

    Args:
        task_vector: τ.
        keep: m, True where an entry survives.
        density: 1 - p, the probability of surviving.
    """
    return torch.where(keep, task_vector / density, torch.zeros_like(task_vector))


def dare_linear(
    base: Entries, sparse_vectors: Sequence[Entries], weights: Sequence[float], *, scale: float = 1.0
) -> Entries:
    """Return θ_0 + λ Σ_j w_j τ̃_j for the task vectors of :func:`drop_and_rescale` (arXiv 2311.03099, Eq. 5)."""
    return base + scale * linear(sparse_vectors, weights)


def fisher(
    tensors: Sequence[Entries], information: Sequence[Entries], weights: Sequence[float], *, floor: float = 1e-10
) -> Entries:
    """Fisher-weighted average, Σ_j w_j (F_j + ε) θ_j / Σ_j w_j (F_j + ε) (arXiv 2111.09832, Eq. 6).

    Args:
        tensors: θ_j.
        information: F_j ≥ 0, diagonal of the Fisher information of model j, entry by entry.
        weights: w_j ≥ 0.
        floor: ε > 0; where all F_j are 0 the result is the weighted average.
    """
    total = torch.zeros_like(tensors[0])
    divisor = torch.zeros_like(tensors[0])
    for tensor, precision, weight in zip(tensors, information, weights, strict=True):
        share = (precision + floor) * weight
        total += share * tensor
        divisor += share
    return total / divisor


def regmean(
    matrices: Sequence[Float[Tensor, "rows columns"]],
    grams: Sequence[Float[Tensor, "columns columns"]],
    weights: Sequence[float],
    *,
    off_diagonal: float = 0.9,
) -> Float[Tensor, "rows columns"]:
    """Regression mean of linear layers, Wᵀ = (Σ_j w_j G_j)⁻¹ Σ_j w_j G_j W_jᵀ (RegMean, arXiv 2212.09849, Eq. 2).

    Args:
        matrices: W_j, as y = W x.
        grams: G_j = mean of x xᵀ over the inputs of the layer.
        weights: w_j; the paper's are equal.
        off_diagonal: α, the factor of the off-diagonal entries of G_j (the paper uses 0.9, 1 for the plain solution).

    Raises:
        ValueError: if Σ_j w_j G_j is singular.
    """
    left = torch.zeros_like(grams[0])
    right = torch.zeros_like(matrices[0].mT)
    for matrix, gram, weight in zip(matrices, grams, weights, strict=True):
        shrunk = torch.lerp(torch.diag_embed(gram.diagonal()), gram, off_diagonal) * weight
        left += shrunk
        right += shrunk @ matrix.mT
    solution, info = torch.linalg.solve_ex(left, right)
    if info.item() != 0 or not torch.isfinite(solution).all():
        raise ValueError("the sum of the Gram matrices is singular; lower off_diagonal or use more rows")
    merged: Tensor = solution.mT
    return merged
