"""Calibration, RewardBench, MT-Bench, best-of-n and plots against brute force and their definitions."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reproalign.common.command.app import WordParser
from reproalign.common.errors import UserError
from reproalign.common.evaluation.calibration import (
    TEMPERATURES,
    calibration,
    fit_temperature,
    ordered_pairs,
    probability_calibration,
    sigmoid,
    soft_target_errors,
)
from reproalign.common.evaluation.mtbench import read_judgments, summarize
from reproalign.common.evaluation.plots import (
    MeanCurve,
    categories,
    comparison,
    curves,
    histograms,
    margin_histogram,
    reliability_diagram,
    training_curves,
)
from reproalign.common.evaluation.preferences import preference_metrics
from reproalign.common.evaluation.rewardbench import (
    COUNTS,
    SECTIONS,
    read_rewardbench,
    response_scores,
    section_scores,
    subset_accuracies,
)
from reproalign.common.generation.best_of_n import best_of_n
from reproalign.common.records.groups import RecordedRun, group_runs, name_groups

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


@given(
    rows=st.lists(st.tuples(st.floats(0, 1), st.sampled_from([0.0, 1.0])), min_size=1, max_size=40),
    n_bins=st.integers(1, 15),
    binning=st.sampled_from(["uniform", "quantile"]),
)
def test_errors_of_probabilities_by_brute_force(rows, n_bins, binning):
    probabilities, labels = [p for p, _ in rows], [y for _, y in rows]
    levels = np.linspace(0, 1, n_bins + 1)
    edges = levels if binning == "uniform" else np.quantile(probabilities, levels)
    bins: dict[int, list[tuple[float, float]]] = {}
    for p, y in rows:
        bins.setdefault(sum(p > edge for edge in edges[1:-1]), []).append((p, y))
    gaps = {m: abs(sum(p for p, _ in inside) - sum(y for _, y in inside)) for m, inside in bins.items()}
    means = [gap / len(bins[m]) for m, gap in gaps.items()]
    result = probability_calibration(probabilities, labels, n_bins=n_bins, binning=binning)
    assert result.ece == pytest.approx(sum(gaps.values()) / len(rows), abs=1e-9)
    assert result.ace == pytest.approx(np.mean(means), abs=1e-9)
    assert result.mce == pytest.approx(max(means), abs=1e-9)
    assert [bin.index for bin in result.bins] == sorted(bins)


def test_a_probability_on_an_edge_belongs_to_the_lower_bin():
    result = probability_calibration([0.0, 0.2, 0.4, 1.0], [0, 0, 1, 1], n_bins=5)
    assert [(bin.index, bin.count) for bin in result.bins] == [(0, 2), (1, 1), (4, 1)]
    assert probability_calibration([], [], n_bins=3, binning="quantile").bins == []
    with pytest.raises(ValueError, match="one label per probability"):
        probability_calibration([0.5], [])
    with pytest.raises(ValueError, match="at least one bin"):
        probability_calibration([], [], n_bins=0)


@given(margins=margin_lists, half=st.integers(1, 10))
def test_ordered_pairs_mirror_the_bins_of_confidence(margins, half):
    inner = np.linspace(0.5, 1, half + 1)[:-1]
    margins = [d for d in margins if np.abs(sigmoid([abs(d)]) - inner).min() > 1e-9] or [0.1]
    confidence = calibration(margins, n_bins=half)
    probability = probability_calibration(*ordered_pairs(margins), n_bins=2 * half)
    for name in ("ece", "ace", "mce"):
        assert getattr(probability, name) == pytest.approx(getattr(confidence, name), abs=1e-9), name
    mirrored = [(half + bin.index, bin.count, bin.accuracy) for bin in confidence.bins]
    upper = [(bin.index, bin.count, bin.accuracy) for bin in probability.bins if bin.index >= half]
    assert upper == [(index, count, pytest.approx(accuracy)) for index, count, accuracy in mirrored]


def test_an_odd_number_of_bins_hides_what_the_middle_one_holds():
    margins = [0.3, 0.3, 0.3, -0.2]  # σ between 0.4 and 0.6
    assert probability_calibration(*ordered_pairs(margins), n_bins=5).ece == pytest.approx(0, abs=1e-12)
    assert probability_calibration(*ordered_pairs(margins), n_bins=10).ece > 0.1


@given(margins=margin_lists, scale=st.floats(0.01, 100))
def test_the_temperature_has_the_least_cross_entropy_and_follows_the_margins_scale(margins, scale):
    margins = [d if abs(d) > 1e-3 else 0.0 for d in margins]
    size = np.sqrt(np.mean(np.square(margins))) or 1.0
    low, high = (np.log(size * bound) for bound in TEMPERATURES)

    def loss(log_temperature):
        return np.logaddexp(0, -np.asarray(margins) / np.exp(log_temperature)).mean()

    best = np.log(fit_temperature(margins))
    for step in (-1.0, -0.1, -0.01, 0.01, 0.1, 1.0):
        if low <= best + step <= high:
            assert loss(best) <= loss(best + step) + 1e-9
    if any(margins):
        assert fit_temperature([scale * d for d in margins]) == pytest.approx(scale * np.exp(best), rel=1e-5)


def test_temperatures_in_closed_form_and_at_their_limits():
    # Two wins and a loss by 1: σ(1/T) = 2/3.
    assert fit_temperature([1.0, 1.0, -1.0]) == pytest.approx(1 / math.log(2))
    assert fit_temperature([1.0, 1.0]) < 1e-3
    assert fit_temperature([1.0, -1.0]) > 1e3
    assert fit_temperature([0.0, 0.0]) == 1.0
    for margins in ([], [math.nan]):
        with pytest.raises(ValueError, match="finite margins"):
            fit_temperature(margins)


def test_a_temperature_mends_the_calibration_of_overconfident_rewards():
    rng = np.random.default_rng(0)
    true = rng.normal(0.5, 1.0, 4000)
    won = rng.random(4000) < sigmoid(true)
    margins = np.where(won, true, -true) * 3.0
    temperature = fit_temperature(margins)
    assert temperature == pytest.approx(3.0, rel=0.1)
    assert calibration(margins).ece > 0.1
    assert calibration(margins / temperature).ece < 0.03


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
    metrics = preference_metrics([1e-17, 0.0, 2.0], [0.0, 0.0, 3.0])
    assert metrics["accuracy"] == pytest.approx(1 / 3)
    assert metrics["margin"] == pytest.approx(-1 / 3)
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
    some = section_scores({**dict.fromkeys(COUNTS, 1.0), "shp": 0.5, "summarize": 0.25, "unknown": 0.0})
    assert some.prior_sets == pytest.approx(0.375)  # of those that are there
    assert some.average == pytest.approx((2 * 4 + 0.375) / 9)
    assert (perfect.average_label, some.average_label) == ("average of four sections, no prior sets", "average")
    assert subset_accuracies(["a", "a", "b"], [1.0, 0.0, -1.0]) == {"a": 0.5, "b": 0.0}


def test_responses_are_scored_by_their_own_token_log_probs():
    per_token, counts = torch.tensor([-3.0, -4.0, -2.0]), torch.tensor([2, 1])
    assert response_scores(per_token, counts, "sum").tolist() == [-7.0, -2.0]
    assert response_scores(per_token, counts, "avg").tolist() == [-3.5, -2.0]
    assert response_scores(per_token, counts, "norm").tolist() == [-5.0, -2.0]


def test_rewardbench_rows_are_checked(tmp_path):
    file = tmp_path / "bench.jsonl"
    row = {"prompt": "p", "chosen": "c", "rejected": "r", "subset": "hep-go"}
    file.write_text(json.dumps(row) + "\n" + json.dumps({**row, "subset": None}) + "\n")
    with pytest.raises(UserError, match="line 2: column 'subset'"):
        read_rewardbench(str(file))


def test_mtbench_scores_drop_unreadable_ratings(tmp_path):
    rows = [
        {"question_id": 81, "turn": 1, "score": 8, "model": "m"},
        {"question_id": 81, "turn": 2, "score": -1, "model": "m"},
        {"question_id": 160, "turn": 2, "judgment": "Rating: [[4]]", "model": "m"},
    ]
    file = tmp_path / "judgments.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    means = {(score.category, score.turn): score.mean for score in summarize(read_judgments(file)["m"])}
    assert means == {
        **{("all", "both"): 6, ("all", "1"): 8, ("all", "2"): 4},
        **{("writing", "both"): 8, ("writing", "1"): 8, ("writing", "2"): None},
        **{("humanities", "both"): 4, ("humanities", "2"): 4},
    }
    file.write_text('{"model": "m"}\n')
    with pytest.raises(UserError, match="line 1: not a judgment"):
        read_judgments(file)


@pytest.mark.usefixtures("pictures")
def test_plots_are_pngs_and_the_same_each_time(tmp_path):
    margins = np.linspace(-1, 3, 50)
    rows = [{"step": 1, "loss": 0.7}, {"step": 2, "loss": 0.6, "eval_loss": 0.65}]
    for folder in (tmp_path / "a", tmp_path / "b"):
        reliability_diagram({"before": calibration([0.0]), "after": calibration(margins)}, folder / "reliability.png")
        margin_histogram({"before": [0.0, 0.0], "after": margins.tolist()}, folder / "margins.png")
        training_curves(rows, folder / "training.png", ["loss", "absent"])
        histograms(
            {f"panel {n}": {"before": [0.0], "after": [1.0, 2.0 * n]} for n in range(4)},
            folder / "histograms.png",
            measured="reward",
            counted="responses",
        )
        line = MeanCurve([1, 2], [0.1, 0.2], [0.0, 0.2], [0.2, 0.2])
        comparison({f"panel {n}": {"a": line, "b": line} for n in range(5)}, folder / "comparison.png")
        categories({"x": {"one": {"a": [0.1, 0.3], "b": [0.2]}, "two": {"b": [0.4]}}}, folder / "categories.png")
    names = ("reliability.png", "margins.png", "training.png", "histograms.png", "comparison.png", "categories.png")
    for name in names:
        content = (tmp_path / "a" / name).read_bytes()
        assert content.startswith(b"\x89PNG")
        assert content == (tmp_path / "b" / name).read_bytes()


def test_a_single_logged_step_is_a_dot_at_a_whole_step(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(curves, "save", lambda figure, path: figures.append(figure))
    training_curves([{"step": 1, "loss": 0.7}], tmp_path / "training.png", ["loss"])
    (axis,) = figures[0].axes
    assert axis.lines[0].get_marker() == "o"
    assert all(step == int(step) for step in axis.get_xticks())
    assert axis.get_legend() is None


def recorded(folder, **config) -> RecordedRun:
    return RecordedRun(folder, {"config": {"output_dir": str(folder), **config}, "recipe": config.get("recipe")})


def test_runs_that_differ_in_seed_alone_are_one_group(tmp_path):
    runs = [
        recorded(tmp_path / name, seed=seed, beta=beta)
        for name, seed, beta in (("a", 1, 0.1), ("b", 2, 0.1), ("c", 1, 0.2))
    ]
    groups = group_runs(runs)
    assert [[run.folder.name for run in group] for group in groups] == [["a", "b"], ["c"]]
    assert list(name_groups(groups)) == ["a (2 runs)", "c"]
    assert list(name_groups(groups, lambda record: None, lambda record: str(record["config"]["beta"]))) == [
        "0.1 (2 runs)",
        "0.2",
    ]
    with pytest.raises(UserError, match="given twice"):
        group_runs([runs[0], runs[0]])
    same_name = [recorded(tmp_path / parent / "run", seed=1, beta=parent) for parent in "xy"]
    assert list(name_groups([[run] for run in same_name])) == [str(run.folder.resolve()) for run in same_name]


def test_a_mistake_in_words_is_one_sentence():
    with pytest.raises(UserError, match=r"unrecognized arguments: --nonsense; see reproalign test --help"):
        WordParser(prog="reproalign test").parse_args(["--nonsense"])
