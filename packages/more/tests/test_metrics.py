"""MORE's measures against brute force and their definitions; its report and its comparison of runs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from reproalign.common.errors import UserError
from reproalign.common.evaluation.calibration import calibrated_ece, sigmoid
from reproalign.common.invocation import Invocation
from reproalign.common.records import Run
from reproalign.common.signing import write_signed
from reproalign.more.loss import ranking_loss
from reproalign.more.metrics import (
    BINS,
    DomainRewards,
    domain_metrics,
    mean_of_domains,
    named_means,
    pair_margins,
    temperature_metrics,
)
from reproalign.more.plot import compare_runs, plot_command
from reproalign.more.report import DIFFERENCES, RESULTS, domain_curves, measure_table, report

tables = st.tuples(st.integers(1, 5), st.integers(2, 4)).flatmap(
    lambda shape: st.tuples(
        *(
            st.lists(st.lists(values, min_size=shape[1], max_size=shape[1]), min_size=shape[0], max_size=shape[0])
            for values in (st.integers(-4, 4).map(lambda n: n / 2), st.sampled_from([-1.0, 0.0, 0.5, 1.0]))
        )
    )
)


def made_up(items: int = 200, responses: int = 2, factor: float = 1.0, seed: int = 0) -> DomainRewards:
    """Items whose preferences follow σ(difference of quality), and rewards of ``factor`` times the quality."""
    rng = np.random.default_rng(seed)
    quality = rng.normal(size=(items, responses))
    liking = quality + rng.gumbel(size=quality.shape)
    return DomainRewards((factor * quality).astype(np.float32), liking.argsort(1).argsort(1).astype(np.float32))


@given(table=tables)
def test_accuracy_and_loss_by_brute_force(table):
    rewards, scores = table
    right = ties = pairs = 0
    loss, responses = 0.0, [z for row in zip(*table, strict=True) for z, s in zip(*row, strict=True) if s >= 0]
    for z, s in zip(rewards, scores, strict=True):
        for i in range(len(z)):
            for j in range(len(z)):
                if s[i] > s[j] >= 0:
                    pairs += 1
                    right += z[i] > z[j]
                    ties += z[i] == z[j]
                    loss += math.log1p(math.exp(z[j] - z[i]))
    paper, released = (domain_metrics(rewards, scores, ties=counted) for counted in ("wrong", "half"))
    assert (paper["pairs"], paper["items"]) == (pairs, len(rewards))
    assert paper["reward_mean"] == pytest.approx(np.mean(responses) if responses else 0)
    assert paper["reward_std"] == pytest.approx(np.std(responses) if responses else 0)
    if pairs:
        assert paper["accuracy"] == pytest.approx(right / pairs)
        assert released["accuracy"] == pytest.approx((right + ties / 2) / pairs)
        assert paper["ties"] == pytest.approx(ties / pairs)
        assert paper["loss"] == pytest.approx(loss / pairs)
        assert paper["loss"] == pytest.approx(
            ranking_loss(torch.tensor(rewards).double(), torch.tensor(scores).double()).item()
        )
    else:
        assert math.isnan(paper["accuracy"])
        assert paper["loss"] == paper["ece_10"] == paper["quantile_mce_5"] == 0


@given(table=tables, n_bins=st.sampled_from(BINS))
def test_calibration_over_ordered_pairs_by_brute_force(table, n_bins):
    """R4, and the mean and the largest error over bins, against a loop over ordered pairs."""
    rewards, scores = table
    bins: dict[int, list[tuple[float, float]]] = {}
    edges = np.linspace(0, 1, n_bins + 1)[1:-1]
    for z, s in zip(rewards, scores, strict=True):
        for i in range(len(z)):
            for j in range(len(z)):
                if min(s[i], s[j]) >= 0 and s[i] != s[j]:
                    p = float(sigmoid([z[i] - z[j]])[0])
                    bins.setdefault(int((p > edges).sum()), []).append((p, float(s[i] > s[j])))
    gaps = [abs(sum(p - y for p, y in inside)) for inside in bins.values()]
    means = [gap / len(inside) for gap, inside in zip(gaps, bins.values(), strict=True)]
    total = sum(len(inside) for inside in bins.values())
    metrics = domain_metrics(rewards, scores)
    assert metrics[f"ece_{n_bins}"] == pytest.approx(sum(gaps) / total if total else 0, abs=1e-9)
    assert metrics[f"ace_{n_bins}"] == pytest.approx(np.mean(means) if total else 0, abs=1e-9)
    assert metrics[f"mce_{n_bins}"] == pytest.approx(max(means, default=0), abs=1e-9)


def test_what_is_not_there_counts_for_nothing_and_the_order_of_responses_is_free():
    measured = made_up(50, 3)
    wider = DomainRewards(
        np.concatenate([np.full((50, 1), np.nan), measured.rewards[:, ::-1]], 1),
        np.concatenate([np.full((50, 1), -1.0), measured.scores[:, ::-1]], 1),
    )
    narrow, wide = (domain_metrics(of.rewards, of.scores) for of in (measured, wider))
    assert wide == pytest.approx(narrow)
    margins, item = pair_margins(measured.rewards, measured.scores)
    assert len(margins) == 150
    assert np.bincount(item).tolist() == [3] * 50


def test_rewards_that_cannot_be_measured():
    with pytest.raises(UserError, match=r"NaN or infinity.*trainer\.learning_rate"):
        domain_metrics([[1.0, math.nan]], [[1.0, 0.0]])
    with pytest.raises(ValueError, match=r"\(items, responses\)"):
        pair_margins([[1.0, 2.0]], [[1.0]])
    with pytest.raises(UserError, match="unknown ties"):
        domain_metrics([[1.0, 2.0]], [[1.0, 0.0]], ties="other")


def test_the_mean_weighs_domains_alike():
    domains = {"large": {"accuracy": 1.0, "pairs": 1000.0}, "small": {"accuracy": 0.0, "pairs": 2.0}}
    assert mean_of_domains(domains) == {"accuracy": 0.5, "pairs": 501.0}


# temperature scaling


def test_temperatures_mend_calibration_and_keep_the_accuracy():
    domains = {"sharp": made_up(2000, factor=4.0), "blunt": made_up(2000, factor=0.25, seed=1)}
    plain = {name: domain_metrics(of.rewards, of.scores) for name, of in domains.items()}
    own = temperature_metrics(domains, per_domain=True)
    shared = temperature_metrics(domains, per_domain=False)
    for name, factor in (("sharp", 4.0), ("blunt", 0.25)):
        assert own[name]["temperature"] == pytest.approx(factor, rel=0.15)
        assert own[name]["ece_10"] < plain[name]["ece_10"] / 2
        assert own[name]["loss"] < min(plain[name]["loss"], shared[name]["loss"])
        assert own[name]["accuracy"] == plain[name]["accuracy"] == shared[name]["accuracy"]
    assert shared["sharp"]["temperature"] == shared["blunt"]["temperature"]


def test_no_item_is_measured_under_a_temperature_that_has_seen_it():
    # Rewards that are all right: T fitted on one half says nothing of the other, which is made all wrong one at a time.
    scores = np.tile([1.0, 0.0], (6, 1))
    right = np.tile([1.0, 0.0], (6, 1))
    scaled = temperature_metrics({"d": DomainRewards(right, scores)}, per_domain=True)["d"]
    for item in range(6):
        rewards = right.copy()
        rewards[item] = [0.0, 1.0]
        one = temperature_metrics({"d": DomainRewards(rewards, scores)}, per_domain=True)["d"]
        # Fitted on the other half, T is the smallest there is, so that the one mistake is made with all confidence.
        assert one["loss"] > 100
        assert one["loss"] > scaled["loss"]
    assert temperature_metrics({"d": made_up(20)}, per_domain=True, seed=1) != temperature_metrics(
        {"d": made_up(20)}, per_domain=True, seed=2
    )


def test_one_item_is_too_few_for_a_temperature():
    tied = DomainRewards(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[1.0, 0.0], [1.0, 1.0]]))
    with pytest.raises(UserError, match=r"domain few has 1 item with pairs"):
        temperature_metrics({"many": made_up(10), "few": tied}, per_domain=False)


# report


def test_beside_an_error_stands_that_of_a_calibrated_model():
    measured = made_up(200)
    metrics = domain_metrics(measured.rewards, measured.scores)
    margins, _ = pair_margins(measured.rewards, measured.scores)
    for n_bins in (5, 10, 20):
        expected = calibrated_ece(margins, n_bins=n_bins)
        assert (metrics[f"ece_{n_bins}_calibrated"], metrics[f"ece_{n_bins}_calibrated_sd"]) == expected
    row = measure_table({"a": metrics}, "t").columns[3]
    assert [*row.cells] == [f"{metrics['ece_10_calibrated']:.4f} ± {metrics['ece_10_calibrated_sd']:.4f}"]


def test_the_mean_of_helpful_and_harmless_stands_by_itself():
    domains = {
        "helpful": {"ece": 0.1, "x_sd": 0.3},
        "harmless": {"ece": 0.3, "x_sd": 0.4},
        "webgpt": {"ece": 0.8, "x_sd": 0},
    }
    means = named_means(domains)
    assert means["mean"] == pytest.approx({"ece": 0.4, "x_sd": 0.5 / 3})  # of independent errors
    assert means["mean_hh"] == pytest.approx({"ece": 0.2, "x_sd": 0.25})
    assert named_means({"helpful": {"ece": 0.1}}).keys() == {"mean"}


def opened(folder: Path) -> Run:
    """A run, as far as a report needs one."""
    folder.mkdir()
    return Run.open(
        Invocation(["more-rm", "evaluate"], "reproalign.more", "evaluate", "m:C", "m:f", {"output_dir": str(folder)})
    )


@pytest.mark.usefixtures("pictures")
def test_a_report_is_written_drawn_and_recorded(tmp_path, capsys):
    run = opened(tmp_path / "run")
    rows = [
        {"step": 1, "lambda/a": 0.3, "lambda/b": 0.7, "grad_norm/a": 1.0, "loss/a": 0.7, "loss": 0.7},
        {"step": 2, "lambda/a": 0.4, "lambda/b": "NaN", "eval_a/accuracy": 0.5, "eval_a/ece_10": 0.1},
    ]
    run.log_again(rows)
    domains = {"a": made_up(40), "b": made_up(30, 3)}
    before = {"a": made_up(40, factor=0.0), "b": made_up(30, 3, factor=0.1)}
    results = report(run, domains, ties="wrong", before=before, temperature=True)
    assert results == run.record["metrics"] == json.loads((run.dir / RESULTS).read_text())
    assert results["domains"]["a"] == domain_metrics(domains["a"].rewards, domains["a"].scores)
    assert results["mean"] == mean_of_domains(results["domains"])
    assert results["before"]["domains"]["a"]["accuracy"] == 0
    assert set(results["temperature"]) == {"shared", "per_domain"}
    differences = load_file(run.dir / DIFFERENCES)
    assert {name: values.shape for name, values in differences.items()} == {"a": (40,), "b": (90,)}
    assert np.mean(differences["a"] > 0) == pytest.approx(results["domains"]["a"]["accuracy"])
    for name in ("reliability", "differences", "rewards", "domains"):
        assert (run.dir / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "before training" in printed
    assert f"{results['domains']['b']['accuracy']:.3f}" in printed
    assert "own T" in printed


def test_an_evaluation_alone_has_no_curves(tmp_path):
    run = opened(tmp_path / "run")
    report(run, {"a": made_up(20)}, ties="half")
    assert not (run.dir / "plots" / "domains.png").exists()
    assert "before" not in run.record["metrics"]


def test_a_domain_of_ties_leaves_nothing(tmp_path):
    run = opened(tmp_path / "run")
    tied = DomainRewards(np.zeros((3, 2)), np.ones((3, 2)))
    with pytest.raises(UserError, match="domain b has no two responses of different scores"):
        report(run, {"a": made_up(20), "b": tied}, ties="wrong")
    assert list(run.dir.iterdir()) == []


def test_tables_fit_a_terminal():
    metrics = {name: domain_metrics(made_up(9).rewards, made_up(9).scores) for name in ("summarize", "helpful")}
    table = measure_table(metrics, "held-out preferences")
    assert table.row_count == 3
    assert [column.header for column in table.columns][:3] == ["domain", "accuracy", "ECE"]


def test_curves_by_domain_leave_out_what_is_no_number():
    curves = domain_curves(
        [{"step": 2, "lambda/a/b": 0.4}, {"step": 1, "lambda/a/b": 0.6}, {"step": 3, "lambda/c": "NaN"}]
    )
    (panel,) = curves.values()
    assert list(panel) == ["a/b"]
    assert (panel["a/b"].steps, panel["a/b"].means) == ([1, 2], [0.6, 0.4])


# plot


def evaluated_run(folder: Path, accuracy: float, seed: int = 1, method: str = "more", **more: Any) -> Path:
    folder.mkdir(parents=True)
    values = {"accuracy": accuracy, "ece_10": 0.1}
    run = {
        "config": {"seed": seed, "output_dir": str(folder), "method": method},
        "status": "finished",
        "command": "more-rm train",
        "recipe": None,
        "metrics": {"domains": {"helpful": values, "harmless": values}, "mean": values},
        **more,
    }
    write_signed(folder / "run.json", run)
    return folder


def test_seeds_of_a_method_are_averaged(tmp_path, capsys):
    runs = [
        evaluated_run(tmp_path / "a", 0.5, seed=1),
        evaluated_run(tmp_path / "b", 0.7, seed=2),
        evaluated_run(tmp_path / "c", 0.8, method="multitask"),
    ]
    measurements = compare_runs(runs)
    assert measurements["accuracy"] == {
        "MORE (2 runs)": {"helpful": [0.5, 0.7], "harmless": [0.5, 0.7], "mean": [0.5, 0.7]},
        "MultiTask": {"helpful": [0.8], "harmless": [0.8], "mean": [0.8]},
    }
    output = tmp_path / "new" / "figure.png"
    assert plot_command([*map(str, runs), "--output", str(output)]) == 0
    assert output.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "0.6000 ± 0.1414" in printed
    assert "MultiTask" in printed


def test_mistakes_in_comparing_runs(tmp_path):
    run, output = evaluated_run(tmp_path / "run", 0.5), tmp_path / "figure.png"
    other = evaluated_run(tmp_path / "other", 0.5, metrics={"accuracy": 0.5})
    for words, message in (
        ([run, "--output", "figure.pdf"], r"must end in \.png"),
        ([run], r"--output; see more-rm plot --help"),
        ([run, run, "--output", output], "given twice"),
        ([other, "--output", output], "no measures of held-out domains"),
        ([tmp_path / "none", "--output", output], "no run record there"),
    ):
        with pytest.raises(UserError, match=message):
            plot_command([str(word) for word in words])
    assert not output.exists()
