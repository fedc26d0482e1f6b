"""Calibration, RewardBench, MT-Bench, best-of-n and plots against brute force and their definitions."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reproalign.common.errors import UserError
from reproalign.common.evaluation.best_of_n import best_of_n
from reproalign.common.evaluation.calibration import calibration, sigmoid, soft_target_errors
from reproalign.common.evaluation.mtbench import averages, read_judgments
from reproalign.common.evaluation.plots import margin_histogram, reliability_diagram, training_curves
from reproalign.common.evaluation.preferences import preference_metrics
from reproalign.common.evaluation.rewardbench import (
    COUNTS,
    SECTIONS,
    read_rewardbench,
    section_scores,
    subset_accuracies,
)

margin_lists = st.lists(st.floats(-6, 6), min_size=1, max_size=40)


@given(margins=margin_lists, n_bins=st.integers(1, 15), lower=st.sampled_from([0.0, 0.5]))
def test_calibration_error_by_brute_force(margins, n_bins, lower):
    edges = np.linspace(lower, 1, n_bins + 1)
    total, worst = 0.0, 0.0
    for m in range(n_bins):
        inside = []
        for d in margins:
            c = max(1 / (1 + math.exp(-d)), 1 - 1 / (1 + math.exp(-d)))
            if edges[m] < c <= edges[m + 1] or (m == 0 and c <= edges[0]):
                inside.append((c, float(d > 0)))
        if inside:
            gap = abs(np.mean([y for _, y in inside]) - np.mean([c for c, _ in inside]))
            total, worst = total + len(inside) / len(margins) * gap, max(worst, gap)
    result = calibration(margins, n_bins=n_bins, lower_edge=lower)
    assert result.ece == pytest.approx(total, abs=1e-9)
    assert result.mce == pytest.approx(worst, abs=1e-9)
    assert sum(bin.count for bin in result.bins) == len(margins)


def test_equal_mass_bins_hold_equally_many():
    result = calibration(np.linspace(0.01, 4, 100), n_bins=5, binning="quantile")
    assert [bin.count for bin in result.bins] == [20] * 5


@given(margins=margin_lists, data=st.data())
def test_soft_errors_are_zero_at_the_targets_alone(margins, data):
    targets = sigmoid(margins)
    at_targets = soft_target_errors(margins, targets)
    assert at_targets["soft_kl"] == pytest.approx(0, abs=1e-9)
    assert at_targets["brier"] == pytest.approx(0, abs=1e-12)
    others = data.draw(st.lists(st.floats(0, 1), min_size=len(margins), max_size=len(margins)))
    assert soft_target_errors(margins, others)["soft_kl"] >= -1e-9


def test_preference_metrics_count_ties_as_wrong():
    metrics = preference_metrics([1.0, 0.0, 2.0], [0.0, 0.0, 3.0])
    assert metrics["accuracy"] == pytest.approx(1 / 3)
    assert metrics["margin"] == pytest.approx(0.0)
    assert "soft_kl" not in metrics


def test_best_of_n_takes_the_first_of_equal_candidates():
    result = best_of_n([[1.0, 3.0, 3.0], [5.0, 2.0, 9.0]], 2, [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]])
    assert result.selected.tolist() == [1, 0]
    assert (result.mean_proxy, result.mean_gold) == (4.0, 2.0)
    with pytest.raises(ValueError, match="n >= 1"):
        best_of_n([[1.0]], 0)


def test_rewardbench_sections_weigh_subsets_by_their_size():
    assert sum(len(members) for members in SECTIONS.values()) == len(COUNTS) == 23
    perfect = section_scores(dict.fromkeys(COUNTS, 1.0))
    assert perfect.average == 1.0
    assert math.isnan(perfect.prior_sets)
    two = section_scores({"alpacaeval-easy": 1.0, "mt-bench-easy": 0.0})
    assert two.sections["Chat"] == pytest.approx(100 / 128)
    assert math.isnan(two.average)
    assert subset_accuracies(["a", "a", "b"], [1.0, 0.0, -1.0]) == {"a": 0.5, "b": 0.0}


def test_rewardbench_rows_are_checked(tmp_path):
    file = tmp_path / "bench.jsonl"
    row = {"prompt": "p", "chosen": "c", "rejected": "r", "subset": "hep-go"}
    file.write_text(json.dumps(row) + "\n" + json.dumps({**row, "subset": None}) + "\n")
    with pytest.raises(UserError, match="line 2: column 'subset'"):
        read_rewardbench(str(file))


def test_mtbench_averages_drop_unreadable_ratings(tmp_path):
    rows = [
        {"question_id": 81, "turn": 1, "score": 8, "model": "m"},
        {"question_id": 81, "turn": 2, "score": -1, "model": "m"},
        {"question_id": 160, "turn": 2, "judgment": "Rating: [[4]]", "model": "m"},
    ]
    file = tmp_path / "judgments.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    means = averages(read_judgments(file)["m"])
    assert means == {"mt_bench": 6, "turn_1": 8, "writing": 8, "turn_2": 4, "humanities": 4}
    file.write_text('{"model": "m"}\n')
    with pytest.raises(UserError, match="line 1: not a judgment"):
        read_judgments(file)


def test_plots_are_pngs_and_the_same_each_time(tmp_path):
    margins = np.linspace(-1, 3, 50)
    rows = [{"step": 1, "loss": 0.7}, {"step": 2, "loss": 0.6, "eval_loss": 0.65}]
    for folder in (tmp_path / "a", tmp_path / "b"):
        reliability_diagram({"before": calibration([0.0]), "after": calibration(margins)}, folder / "reliability.png")
        margin_histogram({"before": [0.0, 0.0], "after": margins.tolist()}, folder / "margins.png")
        training_curves(rows, folder / "training.png", ["loss", "absent"])
    for name in ("reliability.png", "margins.png", "training.png"):
        content = (tmp_path / "a" / name).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert content == (tmp_path / "b" / name).read_bytes()
