"""Tables, claims and figures of several runs: the published numbers as data, and synthetic runs with known answers."""

from __future__ import annotations

import csv
import json
import math
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from reproalign.common.errors import UserError
from reproalign.common.records.paper import load_paper
from reproalign.common.signing import write_signed
from reproalign.common.testing import refusal
from reproalign.more.average import margin_metrics
from reproalign.more.cli import main
from reproalign.more.report import DIFFERENCES
from reproalign.more.study.claim_kinds import rank_correlation
from reproalign.more.study.claims import check_claim
from reproalign.more.study.config import OutliersConfig
from reproalign.more.study.outliers import check_outliers, outliers
from reproalign.more.study.results import (
    FIVE,
    HH,
    ResultKey,
    Value,
    mean_value,
    published_results,
    with_means,
    with_top,
)
from reproalign.more.study.runs import read_runs

PAPER = load_paper("reproalign.more")
BASE, HUB = "pythia-1.4b", "EleutherAI/pythia-1.4b"
RESULTS = published_results()


def cut(value: float, digits: int) -> float:
    return math.floor(value * 10**digits + 1e-9) / 10**digits


# the published numbers


def test_every_number_of_the_tables_is_there():
    rows = list(csv.DictReader(files("reproalign.more.study").joinpath("published.csv").read_text().splitlines()))
    assert len(rows) == PAPER["targets"]["rows"] == 295
    assert {row["table"] for row in rows} == set("123456")
    assert {row["base"] for row in rows} - {""} <= set(PAPER["bases"].values())
    assert not {row["metric"] for row in rows if row["metric"].startswith("ece")} - {"ece_10"}


def test_the_column_avg_is_the_cut_mean_of_its_row_but_for_the_listed_misprints():
    misprints = {(entry["base"], entry["scheme"]): entry for entry in PAPER["misprints"]}
    assert len(misprints) == 5
    for key, value in RESULTS.items():
        if key.metric != "accuracy_printed":
            continue
        row = np.mean([RESULTS[ResultKey(key.base, key.scheme, domain, "accuracy")].value for domain in FIVE])
        stated = RESULTS[ResultKey(key.base, key.scheme, "mean5", "accuracy_of_row")].value
        assert row == pytest.approx(stated)
        entry = misprints.get((key.base, key.scheme))
        assert (entry is None) == (cut(row, 4) == pytest.approx(value.value))
        if entry:
            assert (entry["printed"], entry["row"]) == pytest.approx((100 * value.value, 100 * row))


def test_accuracies_are_cut_counts_of_the_test_items():
    """With cutting 18 of 20 helpful cells are counts of 2,352, 17 of 20 harmless ones of 2,312."""
    for domain, expected in (("helpful", 18), ("harmless", 17)):
        items = RESULTS[ResultKey("", "data", domain, "test_items")].value
        assert items == PAPER["targets"]["items"][domain]
        cells = [v.value for k, v in RESULTS.items() if (k.domain, k.metric) == (domain, "accuracy")]
        fits = [any(cut(n / items, 4) == pytest.approx(x) for n in (math.ceil(x * items - 1e-6),)) for x in cells]
        assert (len(cells), sum(fits)) == (20, expected)


@pytest.mark.parametrize("name", PAPER["claims"])
def test_claims_on_the_paper_s_own_numbers(name):
    claim = PAPER["claims"][name]
    found = check_claim(claim, RESULTS, PAPER["noise"])
    assert found.holds == claim["published"]["holds"]
    assert len(claim["published"].get("not", [])) <= len(found.effects) - found.met


@pytest.mark.parametrize(
    ("claim", "label", "value"),
    [
        ("C1", "pythia-1.4b mean5", -0.0177),
        ("C2", "llama-2-7b hh", -0.0141),
        ("C3", "pythia-2.8b hh", -0.0046),
        ("C4", "llama-2-7b oasst1, webgpt, summarize", 0.0213),
        ("C9", "pythia-1.4b → pythia-2.8b", -0.0082),
        ("C15", "pythia-2.8b wins - losses", 0.11),
        ("C16", "llama-2-7b helpful", -4.96),
    ],
)
def test_effects_as_published(claim, label, value):
    effects = {effect.label: effect for effect in check_claim(PAPER["claims"][claim], RESULTS, PAPER["noise"]).effects}
    assert effects[label].value == pytest.approx(value, abs=1.1e-4)


def test_on_helpful_and_harmless_the_gains_are_near_the_estimator_s_noise_but_at_7b():
    effects = check_claim(PAPER["claims"]["C2"], RESULTS, PAPER["noise"]).effects
    assert [effect.clear for effect in effects] == [False, False, True]


def test_a_lower_ece_goes_with_more_wins_by_rank():
    results = {}
    for name, ece, wins in (("more", 0.01, 0.5), ("more-2", 0.02, 0.4), ("multitask", 0.03, 0.3)):
        results[ResultKey("llama-2-7b", name, "hh", "ece_10")] = Value(ece)
        pair = f"{name}_against_sft"
        results[ResultKey("llama-2-7b, alpaca-7b", pair, "hh", "gpt4_win")] = Value(wins)
        results[ResultKey("llama-2-7b, alpaca-7b", pair, "hh", "gpt4_lose")] = Value(0.3)
    found = check_claim(PAPER["claims"]["C17"], results, {})
    assert (found.holds, found.effects[0].value) == ("1 of 1", pytest.approx(-1.0))
    assert rank_correlation(np.array([[1.0, 2.0], [1.0, 3.0], [2.0, 1.0]])) == pytest.approx(-math.sqrt(3) / 2)


def test_rewards_of_one_model_lie_apart():
    means = {"helpful": 0.0, "harmless": 3.0, "oasst1": 0.5, "webgpt": -0.5, "summarize": 0.2}
    results = {
        ResultKey(BASE, f"single-{name}", "harmless", "reward_mean"): Value(mean) for name, mean in means.items()
    }
    found = check_claim(PAPER["claims"]["C18"], results, {})
    assert found.holds == "1 of 1"
    assert len(found.missing) == 3
    curve = {
        ResultKey("llama-2-7b", name, "hh", "ece_10"): Value(ece)
        for name, ece in (("more-2", 0.05), ("more-3", 0.04), ("more-4", 0.045), ("more", 0.02), ("top", 0.03))
    }
    assert check_claim(PAPER["claims"]["C14"], curve, {}).holds == "3 of 4"


# results


def test_seeds_are_averaged_and_domains_count_the_same():
    assert mean_value([Value(1.0, 0.5)]) == Value(1.0, 0.5)
    found = mean_value([Value(1.0), Value(3.0)])
    assert (found.value, found.error, found.runs) == (2.0, pytest.approx(1.0), 2)
    results = with_means({ResultKey(BASE, "more", name, "ece_10"): Value(float(k), 3.0) for k, name in enumerate(FIVE)})
    assert results[ResultKey(BASE, "more", "mean5", "ece_10")].value == 2.0
    assert results[ResultKey(BASE, "more", "hh", "ece_10")].error == pytest.approx(math.hypot(3, 3) / 2)
    top = with_top({ResultKey(BASE, "single-helpful", name, "accuracy"): Value(float(k)) for k, name in enumerate(HH)})
    assert top[ResultKey(BASE, "top", "helpful", "accuracy")].value == 0
    assert ResultKey(BASE, "top", "harmless", "accuracy") not in top


# outliers


@given(
    st.lists(st.floats(-5, 5).filter(lambda value: abs(value) > 1e-3), min_size=1, max_size=60),
    st.sampled_from([("tukey", 1.5), ("sd", 1.0), ("share", 0.1)]),
)
def test_outliers_are_the_largest_of_their_side_and_the_sides_mirror_each_other(margins, rule):
    config = OutliersConfig(*rule)
    right, wrong = outliers(margins, config)
    mirrored = outliers([-value for value in margins], config)
    assert (right.count, wrong.count) == (mirrored[1].count, mirrored[0].count)
    positive = sorted(value for value in margins if value > 0)
    assert right.pairs == len(positive)
    if right.count:
        assert right.mean == pytest.approx(np.mean(positive[-right.count :]))


def test_the_rules_of_outliers():
    margins = [*np.ones(10), 3.0]
    assert outliers(margins, OutliersConfig("tukey", 1.5))[0].count == 1
    assert outliers(margins, OutliersConfig("sd", 5.0))[0].count == 0
    assert (
        outliers(np.arange(1, 21), OutliersConfig("share", 0.1))[0]
        == outliers(np.arange(-1, 21), OutliersConfig("share", 0.1))[0]
    )
    with pytest.raises(UserError, match=r"outliers\.bound=2\.0 must be below 1"):
        check_outliers(OutliersConfig("share", 2.0))


# runs


def make(folder: Path, verb: str, config: dict[str, Any], margins: dict[str, Any] | None = None, **more: Any) -> Path:
    """Write a run's record, and its margins with their metrics."""
    folder.mkdir(parents=True)
    given = {name: np.asarray(values, dtype=np.float32) for name, values in (margins or {}).items()}
    metrics = {"domains": {name: margin_metrics(values.astype(float), "wrong") for name, values in given.items()}}
    if given:
        save_file(given, folder / DIFFERENCES)
    prints = {f"held out:{name}": {"sha256": more.pop("sha", "same")} for name in given}
    record = {"command": "x", "status": "done", "verb": verb, "config": config, "metrics": metrics}
    record["fingerprints"] = {"data": prints}
    write_signed(folder / "run.json", record | more)
    return folder


def training(method: str = "multitask", trained: list[str] | None = None, rule: str = "min-norm") -> dict[str, Any]:
    data = {"domains": list(FIVE), "train_domains": trained}
    return {"model": {"name": HUB}, "method": method, "data": data, "weights": {"rule": rule}}


def margins(seed: int, shift: float = 0.5) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    return {name: generator.normal(shift, 1.0, 60) for name in FIVE}


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, Path]:
    found = {
        "more": make(tmp_path / "more", "train", training("more"), margins(0)),
        "multitask": make(tmp_path / "multitask", "train", training(), margins(1)),
        "raw": make(tmp_path / "raw", "evaluate", {"model": {"name": HUB}, "fresh_head": True}, margins(2, 0.0)),
        "more-2": make(tmp_path / "two", "train", training("more", list(HH)), margins(3)),
    }
    for k, name in enumerate(FIVE):
        found[name] = make(tmp_path / name, "train", training(trained=[name]), margins(10 + k))
    return found


def test_runs_are_told_by_their_records(tmp_path, runs):
    bases = PAPER["bases"]
    told = {run.folder.name: run.origin for run in read_runs([str(path) for path in runs.values()], bases)}
    assert {name: origin.scheme for name, origin in told.items()} == {
        "more": "more",
        "multitask": "multitask",
        "raw": "raw",
        "two": "more-2",
        **{name: f"single-{name}" for name in FIVE},
    }
    assert {origin.base for origin in told.values()} == {BASE}
    select = make(tmp_path / "select", "select", {}, inputs={"scored": {"run": str(tmp_path / "score")}})
    make(tmp_path / "score", "score", {}, inputs={"model.name": {"run": str(runs["more"])}})
    align = make(tmp_path / "align", "align", {"model": {"name": "x"}}, inputs={"selected": {"run": str(select)}})
    sft = make(tmp_path / "sft", "align", {"model": {"name": "chavinlo/alpaca-native"}})
    ppl = make(tmp_path / "ppl", "perplexity", {"model": {}}, inputs={"model.name": {"run": str(align)}})
    origins = [run.origin for run in read_runs([str(align), str(sft), str(ppl), f"a/b@{select}"], bases)]
    assert [(origin.base, origin.scheme) for origin in origins] == [
        (BASE, "rjs_more"),
        ("alpaca-7b", "sft"),
        (BASE, "rjs_more"),
        ("a", "b"),
    ]
    other = make(tmp_path / "other", "train", {"data": {}}, package="reproalign.mmpo")
    with pytest.raises(UserError, match="give runs of more-rm"):
        read_runs([str(other)], bases)
    with pytest.raises(UserError, match="tells neither base model nor scheme"):
        read_runs([str(select)], bases)
    with pytest.raises(UserError, match="given twice"):
        read_runs([str(align), str(align)], bases)


def test_tables_hold_each_run_beside_the_printed_row(tmp_path, runs):
    out = tmp_path / "tables"
    words = ["study", "tables", f"runs=[{','.join(map(str, runs.values()))}]", "resamples=100", f"output_dir={out}"]
    assert main(words) == 0
    numbers = {
        (row["scheme"], row["domain"], row["metric"]): row
        for row in csv.DictReader((out / "results.csv").read_text().splitlines())
    }
    more = np.asarray(margins(0)["helpful"])
    row = numbers["more", "helpful", "accuracy"]
    assert float(row["value"]) == pytest.approx((more > 0).mean())
    assert float(row["error"]) == pytest.approx(math.sqrt((more > 0).mean() * (more <= 0).mean() / 60), rel=0.3)
    assert numbers["top", "webgpt", "accuracy"]["value"] == numbers["single-webgpt", "webgpt", "accuracy"]["value"]
    assert ("top", "mean5", "ece_10") in numbers
    assert float(numbers["more", "hh", "ece_10_calibrated"]["value"]) > 0
    text = (out / "tables.md").read_text()
    assert f"| {BASE} | more | paper | 64.07 |" in text
    assert text.index(f"| {BASE} | more | here |") < text.index(f"| {BASE} | more | paper | 64.07 |")


def test_without_runs_the_tables_are_the_paper_s(tmp_path):
    assert main(["study", "tables", f"output_dir={tmp_path / 'out'}"]) == 0
    text = (tmp_path / "out" / "tables.md").read_text()
    assert "| llama-2-13b | top | paper | 75.29 |" in text
    assert "| pythia-1.4b | rjs_more | paper | 12.68 | 8.42 |" in text


def test_claims_are_checked_on_runs(tmp_path, runs):
    out = tmp_path / "claims"
    assert main(["study", "claims", f"runs=[{','.join(map(str, runs.values()))}]", f"output_dir={out}"]) == 0
    found = {entry["id"]: entry for entry in json.loads((out / "claims.json").read_text())["claims"]}
    assert (found["C1"]["ours"]["of"], found["C1"]["ours"]["met"]) in ((1, 0), (1, 1))
    assert found["C1"]["ours"]["effects"][0]["error"] > 0
    assert found["C18"]["ours"]["verdict"] == "not testable"  # margins say nothing of rewards
    assert found["C15"]["ours"]["missing"]


def test_a_claim_by_name_needs_runs_that_suffice(tmp_path, runs, capsys):
    words = ["study", "claims", "claims=[C15]", f"runs=[{runs['more']}]", f"output_dir={tmp_path / 'out'}"]
    assert "claim C15: the runs do not suffice" in refusal("more-rm", main, words, capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("pictures")
def test_figures_are_drawn_of_what_there_is(tmp_path, runs, capsys):
    out = tmp_path / "figures"
    judged = make(tmp_path / "judged", "evaluate", {"model": {}}, inputs={"model.name": {"run": str(runs["more"])}})
    runs = {**runs, "judged": judged}  # of the same label as the reward model that it scored with
    words = ["study", "figures", f"runs=[{','.join(map(str, runs.values()))}]", "resamples=100"]
    assert main([*words, f"output_dir={out}"]) == 0
    drawn = {path.name for path in (out / "plots").iterdir()}
    assert drawn == {"overlay.png", "boxes.png", "matrix.png", "ece-over-sets.png"}
    assert "unknown domains 'helpfull'" in refusal(
        "more-rm", main, [*words, "domains=[helpfull]", f"output_dir={out}2"], capsys
    )


# average


def test_averaging_takes_the_mean_margin_of_the_same_items(tmp_path, runs):
    out = tmp_path / "out"
    given = [str(runs[name]) for name in FIVE]
    assert main(["average", f"runs=[{','.join(given)}]", f"output_dir={out}"]) == 0
    results = json.loads((out / "final_eval_results.json").read_text())
    expected = np.mean([np.asarray(margins(10 + k)["harmless"], dtype=np.float32) for k in range(5)], axis=0)
    assert results["domains"]["harmless"]["accuracy"] == pytest.approx((expected > 0).mean())
    assert "reward_mean" not in results["domains"]["harmless"]
    assert results["mean_hh"]["ece_10_calibrated"] > 0
    (run,) = read_runs([str(out)], PAPER["bases"])
    assert (run.origin.base, run.origin.scheme) == (HUB.lower().rpartition("/")[2], "averaging")


def test_equal_mean_rewards_count_as_asked_for(tmp_path):
    one = make(tmp_path / "one", "train", training(), {"helpful": [1.0, 2.0, -1.0]})
    other = make(tmp_path / "other", "train", training(), {"helpful": [-1.0, 2.0, -1.0]})
    accuracies = []
    for ties in ("wrong", "half"):
        assert main(["average", f"runs=[{one},{other}]", f"ties={ties}", f"output_dir={tmp_path / ties}"]) == 0
        found = json.loads((tmp_path / ties / "final_eval_results.json").read_text())
        accuracies.append(found["domains"]["helpful"]["accuracy"])
    assert accuracies == pytest.approx([1 / 3, 1 / 2])


def test_mistakes_in_averaging_leave_nothing(tmp_path, runs, capsys):
    other = make(tmp_path / "other", "train", training(), margins(5), sha="another")
    words = ["average", f"output_dir={tmp_path / 'out'}"]
    message = refusal("more-rm", main, [*words, f"runs=[{runs['more']},{other}]"], capsys)
    assert "domain 'helpful'" in message
    assert "not measured on the same held-out items" in message
    assert "two or more folders" in refusal("more-rm", main, [*words, f"runs=[{other}]"], capsys)
    assert not (tmp_path / "out").exists()
