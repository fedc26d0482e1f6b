"""The error that a calibrated model shows, against all of its possible outcomes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reproalign.common.evaluation.calibration import (
    calibrated_ece,
    ordered_pairs,
    probability_calibration,
    sigmoid,
)


@given(st.lists(st.floats(-4, 4), min_size=1, max_size=7), st.integers(1, 12))
@settings(deadline=None, max_examples=60)
def test_mean_and_spread_over_all_outcomes(margins, n_bins):
    """Every pair is won with probability σ(|d|); the ECE is measured with both orders of each."""
    sizes = np.abs(margins)
    mean = square = 0.0
    for won in itertools.product([False, True], repeat=len(sizes)):
        chance = float(np.prod(np.where(won, sigmoid(sizes), 1 - sigmoid(sizes))))
        found = probability_calibration(*ordered_pairs(np.where(won, sizes, -sizes)), n_bins=n_bins).ece
        mean, square = mean + chance * found, square + chance * found**2
    expected, spread = calibrated_ece(margins, n_bins=n_bins)
    assert expected == pytest.approx(mean, abs=1e-9)
    assert spread**2 == pytest.approx(square - mean**2, abs=1e-9)


@pytest.mark.parametrize(("pairs", "low", "high"), [(2352, 0.011, 0.016), (957, 0.017, 0.025), (656, 0.021, 0.030)])
def test_sizes_of_the_papers_test_sets(pairs, low, high):
    """At ten bins, with margins whose spread gives accuracies between 60 and 75 %."""
    margins = np.random.default_rng(0).normal(0, 1, pairs)
    mean, spread = calibrated_ece(margins)
    assert low < mean < high
    assert 0.3 * mean < spread < 0.5 * mean


def test_many_pairs_by_simulation():
    generator = np.random.default_rng(1)
    sizes = np.abs(generator.normal(0, 1.5, 900))
    draws = [np.where(generator.random(900) < sigmoid(sizes), sizes, -sizes) for _ in range(600)]
    found = [probability_calibration(*ordered_pairs(draw), n_bins=10).ece for draw in draws]
    mean, spread = calibrated_ece(sizes)
    assert mean == pytest.approx(np.mean(found), abs=4 * spread / 600**0.5)
    assert spread == pytest.approx(np.std(found), rel=0.1)


def test_nothing_to_measure():
    assert calibrated_ece([]) == (0, 0)
    assert calibrated_ece([0.0, 0.0]) == (0, 0)
    with pytest.raises(ValueError, match="at least one bin"):
        calibrated_ece([1.0], n_bins=0)
