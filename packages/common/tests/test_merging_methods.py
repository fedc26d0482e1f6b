"""The equations of merging, against the definitions written out entry by entry."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reproalign.common.merging import methods
from reproalign.common.merging.randomness import keep_mask
from reproalign.common.merging.selection import digit_histogram, kth_largest_magnitudes


def vectors(count: int, size: int = 40, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(count, size, generator=generator, dtype=torch.float64))


def test_a_weighted_sum_is_the_weighted_sum():
    a, b, c = vectors(3)
    assert torch.allclose(methods.linear([a, b, c], [0.2, -0.5, 1.3]), 0.2 * a - 0.5 * b + 1.3 * c)


def test_weights_of_zero_and_one_return_the_input_bit_for_bit():
    odd = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, 1e-40])
    broken = torch.full_like(odd, math.nan)
    assert methods.linear([odd, broken], [1.0, 0.0]).view(torch.int32).equal(odd.view(torch.int32))
    assert methods.linear([broken, odd], [0.0, 1.0]).view(torch.int32).equal(odd.view(torch.int32))


def test_inputs_are_left_as_they_are():
    given_vectors = vectors(3)
    before = [vector.clone() for vector in given_vectors]
    methods.linear(given_vectors, [0.5, 0.25, 0.25])
    methods.ties(given_vectors[0], given_vectors[1:], [0.1, 0.1], [1.0, 1.0])
    assert all(map(torch.equal, given_vectors, before))


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=4), st.floats(-2, 2))
def test_task_arithmetic_adds_scaled_task_vectors_to_the_base(weights, scale):
    base, *tuned = vectors(len(weights) + 1)
    expected = base + scale * sum(weight * (theta - base) for weight, theta in zip(weights, tuned, strict=True))
    assert torch.allclose(methods.linear([base, *tuned], methods.task_arithmetic_weights(weights, scale)), expected)


def test_slerp_keeps_the_norm_and_the_ends():
    a, b = (vector / vector.norm() for vector in vectors(2))
    for t in (0.0, 0.3, 1.0):
        merged = methods.linear([a, b], methods.slerp_weights(t, float(a @ b), 1.0, 1.0))
        assert merged.norm() == pytest.approx(1)
        assert torch.arccos(merged @ a) == pytest.approx(t * float(torch.arccos(a @ b)), abs=1e-7)


@pytest.mark.parametrize("dot", [1.0, -1.0, 0.0])
def test_slerp_of_parallel_or_zero_tensors_is_linear(dot):
    norms = (0.0, 1.0) if dot == 0 else (1.0, 1.0)
    assert methods.slerp_weights(0.25, dot, *norms) == (0.75, 0.25)


def ties_by_entry(base, taus, kept, weights, scale):
    """TIES as the paper tells it, one parameter at a time."""
    trimmed = []
    for tau in taus:
        limit = sorted((abs(float(value)) for value in tau), reverse=True)[kept - 1]
        trimmed.append([float(value) if abs(float(value)) >= limit else 0.0 for value in tau])
    merged = []
    for index, start in enumerate(base):
        column = [row[index] for row in trimmed]
        mass = sum(weight * value for weight, value in zip(weights, column, strict=True))
        agreeing = [(w, value) for w, value in zip(weights, column, strict=True) if value * mass > 0]
        mean = sum(w * value for w, value in agreeing) / sum(w for w, _ in agreeing) if agreeing else 0.0
        merged.append(float(start) + scale * mean)
    return torch.tensor(merged, dtype=torch.float64)


@pytest.mark.parametrize("kept", [1, 8, 40])
def test_ties_trims_elects_and_averages_what_agrees(kept):
    base, *taus = vectors(4, seed=kept)
    weights = [1.0, 1.0, 2.0]
    thresholds = kth_largest_magnitudes([kept] * 3, torch.float64, lambda p, d: [histograms(taus, p, d)])
    merged = methods.ties(base, taus, thresholds, weights, scale=0.7)
    assert torch.allclose(merged, ties_by_entry(base, taus, kept, weights, 0.7))


def test_what_cancels_changes_nothing():
    base, tau = vectors(2)
    assert torch.equal(methods.ties(base, [tau, -tau], [0.0, 0.0], [1.0, 1.0]), base)


def histograms(sets, prefixes, done):
    return torch.stack([digit_histogram(values, prefix, done) for values, prefix in zip(sets, prefixes, strict=True)])


@given(
    st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=60),
    st.data(),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_the_threshold_is_exactly_the_kth_largest_magnitude(values, data, dtype):
    tensor = torch.tensor(values, dtype=dtype)
    count = data.draw(st.integers(1, len(values)))
    cut = data.draw(st.integers(0, len(values)))
    # Whatever the slices.
    found = kth_largest_magnitudes(
        [count], dtype, lambda p, d: [histograms([part], p, d) for part in (tensor[:cut], tensor[cut:])]
    )
    assert found == [float(tensor.abs().sort(descending=True).values[count - 1])]


def test_a_count_of_zero_keeps_nothing_and_nan_is_refused():
    values = torch.ones(3)
    assert kth_largest_magnitudes([0], torch.float32, lambda p, d: [histograms([values], p, d)]) == [math.inf]
    with pytest.raises(ValueError, match="NaN"):
        digit_histogram(torch.tensor([1.0, math.nan]), None, 0)


@given(st.integers(0, 5000), st.integers(0, 300))
def test_any_slice_of_a_mask_is_that_slice(start, count):
    whole = keep_mask(7, "model.norm.weight", 1, 0, 5300, 0.3)
    assert torch.equal(keep_mask(7, "model.norm.weight", 1, start, count, 0.3), whole[start : start + count])


def test_masks_keep_their_share_and_differ_by_seed_name_and_model():
    masks = [keep_mask(*key, 0, 100_000, 0.3) for key in [(1, "a", 0), (2, "a", 0), (1, "b", 0), (1, "a", 1)]]
    for mask in masks:
        assert mask.float().mean().item() == pytest.approx(0.3, abs=0.006)  # four standard deviations
    agreement = (masks[0] == masks[1]).float().mean().item()
    assert agreement == pytest.approx(0.3**2 + 0.7**2, abs=0.01)
    assert not any(torch.equal(masks[0], mask) for mask in masks[1:])
    assert keep_mask(1, "a", 0, 0, 1000, 1.0).all()


def test_the_mask_of_a_seed_is_the_same_everywhere():
    bits = keep_mask(42, "model.embed_tokens.weight", 0, 0, 16, 0.5).int().tolist()
    assert bits == EXPECTED_MASK


EXPECTED_MASK = [1, 1, 0, 0, 1, 0, 1, 1, 0, 0, 1, 1, 1, 1, 1, 1]


def test_dare_is_unbiased():
    tau = torch.linspace(-1, 1, 200_000, dtype=torch.float64)
    sparse = methods.drop_and_rescale(tau, keep_mask(0, "w", 0, 0, len(tau), 0.1), 0.1)
    assert set(sparse[sparse != 0].div(tau[sparse != 0]).round(decimals=9).tolist()) == {10.0}
    assert sparse.mul(tau).sum().item() == pytest.approx(tau.mul(tau).sum().item(), rel=0.02)


def test_fisher_weighs_by_precision_and_falls_back_to_the_average():
    a, b = vectors(2)
    sure, unsure = torch.full_like(a, 9.0), torch.full_like(a, 1.0)
    assert torch.allclose(methods.fisher([a, b], [sure, unsure], [1.0, 1.0]), 0.9 * a + 0.1 * b)
    zero = torch.zeros_like(a)
    assert torch.allclose(methods.fisher([a, b], [zero, zero], [3.0, 1.0]), 0.75 * a + 0.25 * b)


def test_regmean_minimises_the_distance_to_every_models_outputs():
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(30, 5, generator=generator, dtype=torch.float64) for _ in range(2)]
    matrices = [torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(2)]
    merged = methods.regmean(matrices, [x.T @ x for x in inputs], [1.0, 1.0], off_diagonal=1.0)
    stacked = torch.linalg.lstsq(
        torch.cat(inputs), torch.cat([x @ matrix.T for x, matrix in zip(inputs, matrices, strict=True)])
    ).solution.T
    assert torch.allclose(merged, stacked)
    assert torch.allclose(methods.regmean(matrices[:1] * 2, [x.T @ x for x in inputs], [1.0, 1.0]), matrices[0])
    with pytest.raises(ValueError, match="singular"):
        methods.regmean(matrices, [torch.zeros(5, 5, dtype=torch.float64)] * 2, [1.0, 1.0])
