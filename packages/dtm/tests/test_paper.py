"""The recorded facts agree with one another, and the claims come out on the paper's own numbers as they were found."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean
from typing import Any

import pytest

from reproalign.common.command.recipes import read_headers
from reproalign.common.evaluation.suites.config import SuiteConfig
from reproalign.common.options.load import load_object
from reproalign.common.records.paper import load_paper
from reproalign.common.testing import composed
from reproalign.dtm.cli import APP
from reproalign.dtm.study.claims import check_claim
from reproalign.dtm.study.claims_report import base_rows, base_sentence, means
from reproalign.dtm.study.findings import Curve, published_curves
from reproalign.dtm.study.scores import ANY, BenchmarkScore, published_scores

PAPER = load_paper("reproalign.dtm")
SCORES, CURVES = published_scores(PAPER), published_curves(PAPER)
ROWS = [(setting, method) for setting, rows in PAPER["results"].items() for method in rows]
TRUNCATED = {("deita", "ARC-c"), ("deita", "RACE"), ("base", "HumanEval")}
NO_COUNT = {("deita", "TruthfulQA")}

# verdict: how many instances hold, of how many; those that do not; effects, in the order of the claim
NINE = PAPER["nine"]
VERDICTS = {
    "dtm-beats-vanilla": (9, [], [2.12, 0.69, 1.68, 1.79, 1.00, 0.77, 0.61, 2.20, 3.30]),
    "dtm-is-best": (8, ["RACE"], None),
    "sft-costs-knowledge-llama": (0, NINE, [4.93, 3.78, 3.37, 3.59, 1.40, 1.05, 5.48, 0.80, 0.98]),
    "sft-costs-knowledge-mistral": (4, ["BBH", "ARC-c", "RACE", "HumanEval", "MBPP"], None),
    "sft-costs-knowledge-baichuan": (4, ["GSM8K", "BBH", "RACE", "HumanEval", "TruthfulQA"], None),
    "dtm-removes-it-mistral": (8, ["OBQA"], None),
    "dtm-removes-it-baichuan": (8, ["MMLU"], None),
    "average-is-enough": (4, [], [0.39, 0.45, 0.69, 1.26]),
    "merge-against-ensemble": (2, [], [0.04, 0.24]),
    "regularisation-helps": (2, [], None),
    "soup-is-second": (1, [], None),
    "dtm-follows-instructions": (3, ["dtm-uniform_soup Vicuna-bench"], [0.33, 0.34, 0.15, -0.88]),
    "gain-vanishes-on-small-data": (1, ["BBH"], [-0.45, 0.60]),
    "late-sft-hurts": (4, [], [-0.96, -0.44, -0.96, -1.85]),
}
MEANS = {
    "llama-2-7b": {
        "base": 30.09,
        "vanilla": 32.91,
        "l2_norm": 32.99,
        "ewc": 32.46,
        "replay": 32.65,
        "uniform_soup": 32.60,
        "moe_loramoe": 31.14,
        "deita": 32.46,
        "dtm": 34.49,
        "dtm_fisher": 34.10,
        "dtm_task_vector": 34.04,
        "dtm_dare": 33.80,
        "dtm_ties": 33.23,
    },
    "mistral-7b": {"base": 42.10, "vanilla": 43.00, "dtm": 44.50},
    "baichuan-2-7b": {"base": 31.86, "vanilla": 32.93, "dtm": 34.87},
}


def finding(name: str):
    return check_claim(PAPER["claims"][name], PAPER, SCORES, CURVES)


def entries(value: Any) -> Iterator[dict[str, Any]]:
    """Every mapping that states numbers."""
    if isinstance(value, dict):
        if "source" in value:
            yield value
        for child in value.values():
            yield from entries(child)


@pytest.mark.parametrize("table", ["results", "curves", "corpus", "targets", "loss_gap", "token_figure"])
def test_every_number_says_where_it_comes_from(table):
    section = PAPER[table] if isinstance(next(iter(PAPER[table].values())), dict) else {table: PAPER[table]}
    rows = section.values() if table != "results" else [row for rows in section.values() for row in rows.values()]
    for row in rows:
        assert row["source"] in {"C", "N", "D", "P2", "I"}, row
    for entry in entries(section):
        assert entry["source"] in {"C", "N", "D", "P2", "I"}, entry


def test_the_claims_are_those_that_are_checked_here():
    assert PAPER["claims"].keys() == VERDICTS.keys()


@pytest.mark.parametrize("name", VERDICTS)
def test_the_papers_own_numbers_bear_a_claim_out_as_far_as_was_found(name):
    met, failing, effects = VERDICTS[name]
    found = finding(name)
    assert found.missing == []
    assert (found.met, [effect.label for effect in found.effects if not effect.met]) == (met, failing)
    assert PAPER["claims"][name]["published"]["holds"] == f"{met} of {len(found.effects)}"
    if effects:
        assert [effect.value for effect in found.effects] == pytest.approx(effects, abs=0.0051)


def test_what_is_said_beside_the_claims():
    assert finding("dtm-beats-vanilla").mean == pytest.approx(1.57, abs=0.005)
    assert finding("sft-costs-knowledge-llama").mean == pytest.approx(2.82, abs=0.005)
    assert [effect.text for effect in finding("average-is-enough").effects] == [
        "dtm_fisher +0.39 (7 of 9)",
        "dtm_task_vector +0.45 (7 of 9)",
        "dtm_dare +0.69 (7 of 9)",
        "dtm_ties +1.26 (8 of 9)",
    ]
    assert finding("merge-against-ensemble").notes[0].startswith("dtm_ensemble is above dtm in 3 of 4")
    assert finding("regularisation-helps").notes == ["ewc's mean 32.46 is not above vanilla's 32.91"]
    assert finding("soup-is-second").notes == ["uniform_soup's mean 32.60 is not above vanilla's 32.91"]
    assert finding("late-sft-hurts").notes == ["figure-1-mmlu-7b: 50.70 at 80% is above dtm's 50.43"]
    assert [effect.text for effect in finding("regularisation-helps").effects] == [
        "l2_norm: BBH MBPP",
        "ewc: ARC-c (tied with vanilla) TruthfulQA",
    ]
    assert finding("soup-is-second").effects[0].text == "uniform_soup: GSM8K MMLU OBQA"


def test_no_gain_of_dtm_over_vanilla_reaches_two_standard_errors_and_bbh_is_nearest():
    errors = {effect.label: effect.z for effect in finding("dtm-beats-vanilla").effects}
    assert max(errors, key=lambda name: errors[name]) == "BBH"
    assert round(errors["BBH"], 1) == 1.9
    assert all(0 < z < 2 for z in errors.values())


def test_nine_benchmark_means():
    found = {(row["setting"], row["method"]): round(row["mean"], 2) for row in means(SCORES, PAPER)}
    assert found == {(setting, method): mean for setting, rows in MEANS.items() for method, mean in rows.items()}


@pytest.mark.parametrize(("setting", "method"), ROWS)
def test_accuracies_are_counts_of_items(setting, method):
    """100·c/items to two decimals for a whole c; BBH is not weighted by questions."""
    for name, score in SCORES[setting][method].items():
        items = PAPER["benchmarks"][name].get("items")
        if items and name != "BBH" and (method, name) not in NO_COUNT:
            nearest = round(score.value * items / 100)
            gap = abs(score.value - 100 * nearest / items)
            assert gap <= (0.01 if (method, name) in TRUNCATED else 0.00501), name


@pytest.mark.parametrize("method", ["dtm", "dtm_ensemble", "uniform_soup", "uniform_soup_ensemble"])
def test_mmlu_is_the_categories_weighted_by_questions(method):
    row, items = SCORES["llama-2-7b"][method], {name: entry.get("items") for name, entry in PAPER["benchmarks"].items()}
    correct = sum(round(row[name].value * items[name] / 100) for name in PAPER["categories"])
    assert sum(items[name] for name in PAPER["categories"]) == items["MMLU"]
    assert 100 * correct / items["MMLU"] == pytest.approx(row["MMLU"].value, abs=0.0051)


def test_the_corpus_adds_up_to_the_published_run():
    assert sum(entry["rows"] for entry in PAPER["corpus"].values()) == PAPER["published_runs"]["llama-2-7b"]["rows"]


def test_curves_have_a_value_for_each_fraction_and_figure_1_ends_as_printed():
    for name, entry in PAPER["curves"].items():
        assert len(entry["fractions"]) == len(entry["values"]), name
    assert CURVES["figure-1-mmlu-7b"].values[-1] == SCORES["llama-2-7b"]["vanilla"]["MMLU"].value


def test_the_suite_has_every_benchmark_and_its_mean_is_over_the_nine():
    suite = SuiteConfig(**composed_suite())
    names = {*suite.benchmarks, *suite.averages}
    by_paper = {name: entry["suite"] for name, entry in PAPER["benchmarks"].items() if "suite" in entry}
    assert set(by_paper.values()) <= names
    assert {by_paper[name] for name in PAPER["nine"]} == set(suite.average("nine").members)
    zero_shot = {name: suite.benchmark(name) for name in ("arc_challenge", "openbookqa", "race", "truthfulqa_mc1")}
    assert {(entry.shots, entry.metric) for entry in zero_shot.values()} == {(0, "acc")}
    assert zero_shot["race"].task == "race_2023"
    assert (suite.benchmark("mmlu").shots, suite.benchmark("bbh").shots) == (5, 3)
    assert suite.run_code is False


def test_mmlu_categories_are_hendrycks():
    """57 subjects in all; anatomy counts to the others, not to STEM as in lm-eval."""
    suite = SuiteConfig(**composed_suite())
    members = {
        name: suite.average(f"mmlu_{name}").members for name in ("stem", "humanities", "social_sciences", "other")
    }
    assert {name: len(subjects) for name, subjects in members.items()} == {
        "stem": 18,
        "humanities": 13,
        "social_sciences": 12,
        "other": 14,
    }
    assert len({subject for subjects in members.values() for subject in subjects}) == 57
    assert "mmlu/mmlu_anatomy" in members["other"]


def composed_suite() -> dict[str, Any]:
    verb = next(entry for entry in APP.verbs if entry.when == "suite")
    from reproalign.common.options.compose import compose

    words = ["suite=dtm", "model.name=tiny:llama", "output_dir=out"]
    return compose(APP.package, verb.config_name, verb.schema, words).config["suite"]


def test_targets_are_those_of_recipes_and_every_study_has_its_options():
    assert {name for name in PAPER["targets"] if name not in read_headers("reproalign.dtm")} <= {"llama-2-7b-moe"}
    for verb in APP.verbs:
        if verb.name.startswith("study "):
            assert load_object(verb.schema)
            assert load_object(verb.target)
    assert composed(APP, "output_dir=out", verb="study claims")["tolerance"] == 0.5


def test_a_suite_is_the_papers_only_if_all_three_base_models_agree():
    assert base_sentence(base_rows(SCORES, PAPER, 0.0), PAPER, 0.0).endswith("it may be called the paper's")
    off = {setting: dict(rows) for setting, rows in SCORES.items()}
    off["mistral-7b"]["base"] = {**SCORES["mistral-7b"]["base"], "MMLU": BenchmarkScore(61.5)}
    rows = base_rows(off, PAPER, 0.5)
    assert [row for row in rows if not row["agrees"]] == [
        {
            "setting": "mistral-7b",
            "benchmark": "MMLU",
            "published": 62.56,
            "here": 61.5,
            "difference": pytest.approx(-1.06),
            "agrees": False,
        }
    ]
    assert "26 agree within 0.5 points, 1 do not, 0 were not given" in base_sentence(rows, PAPER, 0.5)
    one = {"llama-2-7b": {"base": SCORES["llama-2-7b"]["base"]}}
    assert "18 were not given" in base_sentence(base_rows(one, PAPER, 0.5), PAPER, 0.5)
    assert base_rows({ANY: one["llama-2-7b"]}, PAPER, 0.5) == []  # of which model is not known


def test_claims_are_checked_on_what_there_is_and_say_what_is_missing():
    row = {"MMLU": BenchmarkScore(50.0, 0.4), "BBH": BenchmarkScore(40.0)}
    scores = {ANY: {"vanilla": row, "dtm": {"MMLU": BenchmarkScore(51.0, 0.3), "BBH": BenchmarkScore(40.0)}}}
    found = check_claim(PAPER["claims"]["dtm-beats-vanilla"], PAPER, scores, {})
    assert [(effect.label, effect.value, effect.met) for effect in found.effects] == [
        ("MMLU", 1.0, True),
        ("BBH", 0.0, False),
    ]
    assert found.effects[0].z == pytest.approx(2.0)
    assert found.effects[1].z is None
    assert "lacks GSM8K, ARC-c" in found.missing[0]
    assert check_claim(PAPER["claims"]["average-is-enough"], PAPER, scores, {}).verdict == "not testable"
    curve = {"figure-1-mmlu-7b": Curve([0.5, 1.0], [50.0, 50.5])}
    late = check_claim(PAPER["claims"]["late-sft-hurts"], PAPER, scores, curve)
    assert late.verdict == "contradicted"
    assert late.missing == ["no curve figure-1-bbh-7b, figure-1-mmlu-13b, figure-1-bbh-13b"]


def test_the_mean_of_a_row_is_that_of_its_benchmarks():
    row = SCORES["mistral-7b"]["dtm"]
    (found,) = [entry for entry in means({"mistral-7b": {"dtm": row}}, PAPER)]
    assert found["mean"] == pytest.approx(fmean(row[name].value for name in PAPER["nine"]))
