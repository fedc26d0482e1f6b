"""The studies: the published series bear out what is stated of them, and other results are judged by the same rules."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reproalign.ama.cli import main
from reproalign.ama.points import Measure, Point, write_points
from reproalign.ama.study.claims import check_claim
from reproalign.ama.study.published import published_points
from reproalign.ama.study.results import make_results
from reproalign.common.records.paper import load_paper
from reproalign.common.study.findings import Finding

PAPER = load_paper("reproalign.ama")
FLOOR = PAPER["noise"]["floor"]
PUBLISHED = make_results(published_points(), FLOOR)


def find(claim: str, points: list[Point] | None = None, **keys: Any) -> Finding:
    results = PUBLISHED if points is None else make_results(points, FLOOR, **keys)
    return check_claim(PAPER["claims"][claim], results)


def values(finding: Finding) -> dict[str, float]:
    return {effect.label: effect.value for effect in finding.effects}


@pytest.mark.parametrize("name", list(PAPER["claims"]))
def test_the_papers_own_series_bear_out_what_is_stated_of_each_claim(name: str) -> None:
    finding, published = find(name), PAPER["claims"][name]["published"]
    assert f"{finding.met} of {len(finding.effects)}" == published["holds"]
    assert not finding.missing
    failing = [effect.label for effect in finding.effects if not effect.met]
    assert sorted(failing) == sorted(published.get("not", []))


def test_every_figure_and_table_row_is_among_the_published_points() -> None:
    points = published_points()
    figures = {part.strip() for point in points for part in point.notes["figure"].split(",")}
    assert figures == {"3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16", "Table 1"}
    assert len(points) == 239
    assert {point.notes["source"] for point in points} == {"D", "P"}
    baselines = [point for point in points if point.notes["figure"].startswith("3") and point.method != "ma"]
    assert len(baselines) == 37


def test_changes_in_per_cent_are_those_of_the_plots() -> None:
    texts = " ".join(effect.text for effect in find("C1").effects)
    for change in ("rsf reward +1.941 (+39.2 %)", "dpo bleu -8.94 (-28.8 %)", "ppo reading -8.72 (-49.5 %)"):
        assert change in texts


def test_margins_are_measured_at_equal_or_higher_reward() -> None:
    found = values(find("C4"))
    expected = {"rsf hma 0.3": 0.71, "rsf hma 0.4": 0.53, "rsf hma 0.6": 0.32, "dpo hma 0.4": 0.35, "dpo hma 0.5": 0.30}
    for label, value in expected.items():
        assert found[f"{label} reading"] == pytest.approx(value, abs=0.015)  # series are rounded to two decimals
    assert found["rsf hma 0.2 reading"] == np.inf
    assert found["dpo hma 0.2 reading"] == np.inf
    replay = values(find("C7"))
    assert [replay[f"rsf replay {value} reading"] for value in ("0.25", "0.5", "1", "2", "4")] == pytest.approx(
        [0.65, 1.28, 1.04, 0.95, 1.33], abs=0.015
    )


def test_hypervolumes_are_those_stated() -> None:
    assert "hypervolumes K=3 11.57, K=6 11.21, K=9 11.05, MA 10.74" in find("C5").notes
    found = values(find("C4b"))
    assert found["rsf reading"] == pytest.approx(6.3, abs=0.1)
    assert found["dpo reading"] == pytest.approx(16.3, abs=0.1)
    assert found["dpo bleu"] == pytest.approx(11.1, abs=0.1)


def test_the_input_part_raises_both_at_the_stated_ratios() -> None:
    finding = find("C3")
    assert "rsf input reward +0.265 at α = 0.5" in finding.effects[0].text
    assert any(
        "rsf: both rise at α: input 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8; middle 0.1, 0.2; output never" in note
        for note in finding.notes
    )


def sweep(method: str, rewards: list[float], tasks: list[float], **keys: Any) -> list[Point]:
    ratios = np.linspace(0, 1, len(rewards))
    return [
        Point(
            method,
            method,
            Measure(reward, 0.01),
            "rsf",
            alpha=float(alpha),
            metrics={"reading": Measure(task, 0.1)},
            **keys,
        )
        for alpha, reward, task in zip(ratios, rewards, tasks, strict=True)
    ]


MA = sweep("ma", [6.0, 6.0, 5.0], [10.0, 14.0, 16.0])


def test_a_sweep_below_the_line_contradicts_and_one_above_supports() -> None:
    lower, higher = (sweep("hma", [6.0, 5.9, 5.0], [10.0, task, 16.0]) for task in (13.0, 15.0))
    assert find("C4", MA + lower).verdict == "contradicted"
    finding = find("C4", MA + higher)
    assert finding.verdict == "supported"
    assert finding.missing == ["no hma of dpo", "no MA sweep of dpo"]
    by_volume = check_claim(PAPER["claims"]["C4"], make_results(MA + higher, FLOOR), judge="hypervolume")
    assert [effect.label for effect in by_volume.effects] == ["rsf reading"]
    assert by_volume.verdict == "supported"


def test_a_claim_without_its_series_is_not_testable_and_says_why() -> None:
    finding = find("C7", MA)
    assert finding.verdict == "not testable"
    assert "no replay of rsf" in finding.missing


def test_ends_of_a_sweep_are_taken_from_points_of_their_own() -> None:
    inner = [point for point in MA if 0 < (point.alpha or 0) < 1]
    ends = [
        Point("θ", "post", MA[0].reward, "rsf", metrics=MA[0].metrics),
        Point("θ_0", "pre", MA[-1].reward, metrics=MA[-1].metrics),
    ]
    results = make_results(inner + ends, FLOOR)
    assert [results.points[index].reward.value for index in results.sweep("rsf", "ma")] == [6.0, 6.0, 5.0]


def test_learned_ratios_of_other_levels_are_no_sweep_of_three_groups() -> None:
    three = sweep("hma", [6.0, 5.9, 5.0], [10.0, 15.0, 16.0], parameter="K", value="3")
    layers = sweep("hma", [6.0, 5.5, 5.0], [10.0, 11.0, 16.0], parameter="level", value="layerwise")
    assert [effect.value for effect in find("C4", MA + three + layers).effects] == [
        effect.value for effect in find("C4", MA + three).effects
    ]


def test_standard_errors_give_intervals_and_what_is_inside_them_is_not_clear() -> None:
    noisy = [replace(point, metrics={"reading": Measure(point.metrics["reading"].value, 2.0)}) for point in MA]
    learned = sweep("hma", [6.0, 5.9, 5.0], [10.0, 14.6, 16.0])
    (sure,), (unsure,) = (find("C4", points + learned, resamples=400, seed=1).effects for points in (MA, noisy))
    assert sure.interval is not None
    assert unsure.interval is not None
    assert sure.interval.low < sure.value < sure.interval.high
    assert sure.clear
    assert not unsure.clear


def test_rewards_by_prompt_are_resampled_together(tmp_path: Path) -> None:
    prompts = np.random.default_rng(0).standard_normal(300)
    points = []
    for place, point in enumerate(MA):
        rewards = point.reward.value + 5 * prompts  # the same prompts are hard for all models
        file = tmp_path / f"{place}.jsonl"
        file.write_text("".join(json.dumps({"id": str(i), "reward": r}) + "\n" for i, r in enumerate(rewards)))
        points.append(replace(point, notes={"rewards": str(file)}))
    paired, unpaired = (make_results(found, {}, resamples=300, seed=0) for found in (points, MA))
    assert paired.draws is not None
    assert unpaired.draws is not None
    assert "rewards of 3 points resampled together over 300 prompts" in paired.notes
    assert np.ptp(paired.draws[:, 0, 0] - paired.draws[:, 2, 0]) < 1e-9
    assert np.ptp(unpaired.draws[:, 0, 0] - unpaired.draws[:, 2, 0]) > 0.01


def test_claims_on_results_write_every_form(tmp_path: Path) -> None:
    learned = sweep("hma", [6.0, 5.9, 5.0], [10.0, 15.0, 16.0])
    write_points(MA + learned, tmp_path / "points.csv")
    out = tmp_path / "out"
    command = ["study", "claims", f"results=[{tmp_path}]", f"output_dir={out}", "resamples=100"]
    assert main([*command, "claims=[C1,C4]"]) == 0
    rows = json.loads((out / "claims.json").read_text())["claims"]
    assert [row["id"] for row in rows] == ["C1", "C4"]
    assert rows[1]["ours"]["verdict"] == "supported"
    lines = list(csv.DictReader((out / "claims.csv").open()))
    assert {line["numbers"] for line in lines} == {"paper", "ours"}
    assert (out / "plots" / "fronts.png").stat().st_size > 5000
    assert "not tested: no hma of dpo" in (out / "claims.md").read_text()


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["claims=[C99]"], "unknown claim 'C99'"),
        (["judge=area"], "unknown judge 'area'"),
        (["confidence=1"], "confidence=1.0 must be above 0 and below 1"),
        (["resamples=10"], "resamples=10 must be at least 100"),
        (["floor=measured"], "floor=measured is about results"),
        (["tasks.reading=x"], "tasks is about results"),
        (["results=[RESULTS]", "tasks.reading=-loss"], "no point has this metric; the results have reading"),
        (["results=[RESULTS]", "claims=[C7]"], "claim C7: the results do not suffice: no replay of rsf"),
        (["results=[RESULTS]", "rule=released_ma"], "rule=released_ma: no point is under it"),
        (["results=[RESULTS]", "floor=measured"], "floor=measured needs θ_0 scored twice"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    write_points(MA, tmp_path / "points.csv")
    given = [argument.replace("RESULTS", str(tmp_path)) for argument in arguments]
    assert main(["study", "claims", f"output_dir={tmp_path / 'out'}", *given]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_points_of_several_tensor_rules_need_a_choice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = [replace(point, notes={"rule": rule}) for rule in ("released_ma", "linear_head_pre") for point in MA]
    write_points(both, tmp_path / "points.csv")
    command = ["study", "claims", f"results=[{tmp_path}]", "claims=[C1]", "resamples=100"]
    assert main([*command, f"output_dir={tmp_path / 'a'}"]) == 2
    assert "several tensor rules (linear_head_pre, released_ma); choose one by rule=" in capsys.readouterr().err
    assert main([*command, f"output_dir={tmp_path / 'b'}", "rule=released_ma"]) == 0


def test_the_tax_is_printed_beside_figure_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_points(MA + sweep("hma", [6.0, 5.9, 5.0], [10.0, 15.0, 16.0]), tmp_path / "points.csv")
    assert main(["study", "tax", f"results=[{tmp_path}]", "alpha=0.5", f"output_dir={tmp_path / 'out'}"]) == 0
    rows = list(csv.DictReader((tmp_path / "out" / "tax.csv").open()))
    rsf = {row["metric"]: row for row in rows if (row["numbers"], row["algorithm"]) == ("paper", "rsf")}
    assert (rsf["bleu"]["percent"], rsf["bleu"]["printed in figure 1"]) == ("-81.8", "-45")
    here = {row["metric"]: row for row in rows if row["numbers"] == "here"}
    assert (here["reading"]["change"], here["reading"]["percent"]) == ("-6.00", "-37.5")
    table = list(csv.DictReader((tmp_path / "out" / "table1.csv").open()))
    assert [row["row"] for row in table if row["numbers"] == "here"] == ["original", "MA", "HMA"]
    assert [row["reward"] for row in table if row["numbers"] == "paper"] == ["8.1", "9.32", "11.3", "11.5"]
    capsys.readouterr()


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["alpha=0.5"], "alpha is about results; give results=[points.csv,…] too"),
        (["results=[RESULTS]", "alpha=0.3"], "alpha=0.3: the results have no average (MA, HMA) at this ratio"),
        (["results=[RESULTS]", "alpha=1.3"], "alpha=1.3 must be from 0 to 1"),
    ],
)
def test_a_ratio_that_no_row_has_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    write_points(MA, tmp_path / "points.csv")
    given = [argument.replace("RESULTS", str(tmp_path)) for argument in arguments]
    assert main(["study", "tax", f"output_dir={tmp_path / 'out'}", *given]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("pictures")
def test_a_training_is_drawn_in_the_order_of_its_checkpoints(tmp_path: Path) -> None:
    checkpoints = [
        Point(
            "RSF",
            "early",
            Measure(reward),
            "rsf",
            parameter="iteration",
            value=value,
            metrics={"reading": Measure(1.0)},
        )
        for value, reward in (("10", 5.5), ("2", 5.8))
    ]
    write_points(MA + checkpoints, tmp_path / "points.csv")
    out = tmp_path / "out"
    assert main(["study", "trajectory", f"results=[{tmp_path}]", "metrics=[reading]", f"output_dir={out}"]) == 0
    rows = list(csv.DictReader((out / "trajectory.csv").open()))
    assert [float(row["reward"]) for row in rows if row["numbers"] == "here"] == [5.0, 5.8, 5.5, 6.0]
    paper = [float(row["reward"]) for row in rows if row["numbers"] == "paper"]
    assert paper == [4.953, 5.064, 5.271, 5.382, 6.36, 6.591, 6.617, 6.648, 6.894]


def test_fronts_of_algorithms_are_laid_over_each_other(tmp_path: Path) -> None:
    assert main(["study", "trajectory", "kind=algorithms", f"output_dir={tmp_path / 'out'}"]) == 0
    rows = list(csv.DictReader((tmp_path / "out" / "trajectory.csv").open()))
    assert {row["series"] for row in rows} == {"MA (RSF)", "MA (DPO)", "MA (PPO)"}


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["kind=curve"], "unknown kind 'curve'"),
        (["published=false"], "published=false leaves nothing to draw"),
        (["metrics=[]"], "metrics is empty"),
        (["kind=algorithms", "algorithm=dpo"], "algorithm is of kind=training; remove it for kind=algorithms"),
        (["algorithm=grpo"], "the paper's series have no checkpoints (method early) of grpo"),
    ],
)
def test_a_trajectory_of_nothing_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["study", "trajectory", f"output_dir={tmp_path / 'out'}", *arguments]) == 2
    assert message in capsys.readouterr().err
