"""The recorded facts agree with one another: tables, targets, recipes' headers, and what ERRATA.md points to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from reproalign.common.command.recipes import read_headers
from reproalign.common.evaluation.rewardbench import COUNTS, section_scores
from reproalign.common.mappings import flatten
from reproalign.common.options.keys import known_keys
from reproalign.common.options.load import load_object
from reproalign.common.records.paper import load_paper
from reproalign.common.testing import composed
from reproalign.mmpo.cli import APP
from reproalign.mmpo.objective import OBJECTIVES

ROOT = Path(__file__).parents[3]
ERRATA = (ROOT / "packages" / "mmpo" / "ERRATA.md").read_text(encoding="utf-8")
PAPER = load_paper("reproalign.mmpo")
HEADERS = read_headers("reproalign.mmpo")
PUBLISHED = [  # trainings
    name
    for name, header in HEADERS.items()
    if not name.startswith(("smoke", "smollm2")) and header["verb"] not in ("mt-bench", "best-of-n")
]
SECTIONS = ("chat", "chat_hard", "safety", "reasoning")


def entries(value: Any) -> Iterator[dict[str, Any]]:
    """Every innermost mapping."""
    nested = [child for child in value.values() if isinstance(child, dict)]
    if not nested:
        yield value
    for child in nested:
        yield from entries(child)


@pytest.mark.parametrize(
    "table",
    [
        *("mt_bench", "mt_bench_categories", "rewardbench", "rewardbench_evaluations", "statements", "sft_losses"),
        *("reward_runs", "rows_kept", "targets", "checkpoints"),
    ],
)
def test_every_number_says_where_it_comes_from(table):
    for entry in entries(PAPER[table]):
        assert entry["source"] in set("CYRMTDFSI"), entry


def test_every_table_of_results_says_what_it_measures_how_it_was_read_and_how_exactly():
    tables = {"mt_bench", "mt_bench_categories", "rewardbench", "rewardbench_subsets", "evaluation_loss"}
    assert PAPER["measures"].keys() == tables
    for measure in PAPER["measures"].values():
        assert measure.keys() == {"definition", "range", "read", "resolution"}


@pytest.mark.parametrize(("column", "evaluation"), [(0, "first"), (1, "second")])
def test_subset_accuracies_add_up_to_the_recorded_sections(column, evaluation):
    subsets = {name: values[column] for name, values in PAPER["rewardbench_subsets"].items()}
    scores = section_scores(subsets)
    recorded = PAPER["rewardbench_evaluations"][evaluation]
    found = dict(zip(SECTIONS, scores.sections.values(), strict=True))
    found |= {"prior": scores.prior_sets, "average": scores.average}
    for name, value in found.items():
        assert 100 * value == pytest.approx(recorded[name], abs=0.01), name


def test_without_prior_sets_the_average_is_another_number():
    """77.44 from the checkpoint's own subsets, where 76.52 was published; the table says which one it is."""
    subsets = {name: values[1] for name, values in PAPER["rewardbench_subsets"].items() if name in COUNTS}
    scores = section_scores(subsets)
    assert 100 * scores.average == pytest.approx(77.44, abs=0.01)
    assert scores.average_label == "average of four sections, no prior sets"


@pytest.mark.parametrize("row", PAPER["rewardbench"])
def test_rewardbench_rows_have_the_average_of_their_sections(row):
    """Sections weigh 2, prior sets 1; all are printed to one decimal."""
    values = PAPER["rewardbench"][row]
    average = (2 * sum(values[name] for name in SECTIONS) + values["prior"]) / 9
    assert average == pytest.approx(values["average"], abs=0.11)


def test_the_second_evaluation_is_the_one_on_the_leaderboard():
    shown, second = PAPER["rewardbench"]["gemma-7b-mmpo-leaderboard"], PAPER["rewardbench_evaluations"]["second"]
    assert {name: round(second[name], 1) for name in SECTIONS[:2]} == {name: shown[name] for name in SECTIONS[:2]}
    assert second["average"] == pytest.approx(shown["average"], abs=0.051)


@pytest.mark.parametrize(
    ("row", "data"), [("gemma-7b-mmpo", "mmpo-ultrafeedback"), ("gemma-7b-dpo", "dpo-ultrafeedback")]
)
def test_digitised_categories_have_the_published_mean(row, data):
    values = [value for name, value in PAPER["mt_bench_categories"][row].items() if name != "source"]
    assert fmean(values) == pytest.approx(PAPER["mt_bench"]["gemma-7b"][data]["value"], abs=0.06)


@pytest.mark.parametrize("recipe", PAPER["targets"])
def test_targets_are_the_tables_and_the_headers(recipe):
    """A number is written in three places: the table, the recipe's target, and the recipe's header."""
    targets = {measure: entry["value"] for measure, entry in PAPER["targets"][recipe].items()}
    model, method = re.fullmatch(r"(gemma-2b|gemma-7b|llama-3-8b)-(.*)", recipe).groups()
    method = "ultrafeedback" if method == "mt-bench" else method  # the policy that it asks
    if method != "sft":
        data, baseline = re.fullmatch(r"(\w+)(-dpo)?", method).groups()
        method = f"{'dpo' if baseline else 'mmpo'}-{data}"
    if "MT-Bench" in targets:
        assert targets["MT-Bench"] == PAPER["mt_bench"][model][method]["value"]
    if "RewardBench average" in targets:
        assert targets["RewardBench average"] == PAPER["rewardbench"][f"{model}-{method.partition('-')[0]}"]["average"]
    if method != "sft":
        written = {float(number) for number in re.findall(r"\d+\.\d+", HEADERS[recipe]["expected"])}
        assert written == set(targets.values())


@pytest.mark.parametrize("entry", PAPER["claims"], ids=lambda entry: f"{entry['claim']}: {entry['table']}")
def test_claims_are_differences_of_recorded_numbers(entry):
    table = PAPER[entry["table"]]
    for model, difference in entry["differences"].items():
        if entry["table"] == "mt_bench":
            better, worse = (table[model][entry[side]]["value"] for side in ("better", "worse"))
        else:
            better, worse = (table[f"{model}-{method}"][entry["measure"]] for method in ("mmpo", "dpo"))
        assert better - worse == pytest.approx(difference, abs=1e-9)
        resolution = PAPER["measures"][entry["table"]]["resolution"]
        assert difference >= resolution - 1e-9 or "contradicted" in entry["verdict"]


def test_noted_reward_runs_have_recipes_of_their_settings():
    for run in PAPER["reward_runs"].values():
        if run["recipe"]:
            config = flat(run["recipe"])
            found = config["target.gamma"], config["trainer.learning_rate"], config["trainer.num_train_epochs"]
            assert found == (run["gamma"], run["learning_rate"], run["epochs"])
            assert int(HEADERS[run["recipe"]]["global_batch"]) == run["batch"]


def test_a_mmpo_reward_model_is_trained_with_gamma_one_half():
    recipes = [name for name in PUBLISHED if HEADERS[name]["verb"] == "reward" and "-mmpo" in name]
    assert {flat(name)["target.gamma"] for name in recipes} == {0.5}
    assert len(recipes) == 5


def flat(name: str) -> dict[str, Any]:
    """The whole configuration of a recipe, with dots in its keys."""
    return flatten(composed(APP, f"experiment={name}"))


@pytest.mark.parametrize(
    ("mmpo", "baseline"),
    [
        *((name, f"{name}-dpo") for name in PUBLISHED if f"{name}-dpo" in PUBLISHED),
        *((name, name.replace("-mmpo", "")) for name in PUBLISHED if "-mmpo" in name),
    ],
)
def test_a_baseline_is_the_same_run_with_hard_labels(mmpo, baseline):
    ours, theirs = flat(mmpo), flat(baseline)
    assert {key for key in ours if ours[key] != theirs[key]} == {"target.gamma", "output_dir"}
    assert ours["target.gamma"] > 0
    assert theirs["target.gamma"] is None


def test_every_mmpo_recipe_has_its_baseline():
    baselines = {"gemma-7b-ultrafeedback-readme": "gemma-7b-ultrafeedback-dpo"}  # of one epoch instead of three
    for name in PUBLISHED:
        if HEADERS[name]["verb"] == "train" and not name.endswith("-dpo"):
            assert baselines.get(name, f"{name}-dpo") in PUBLISHED


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipes_follow_the_release_as_the_errata_say(name):
    config, verb = flat(name), HEADERS[name]["verb"]
    masters = config["launch.strategy"] == "zero3"  # plain data parallel has none (ERRATA Q38)
    assert (config["model.dtype"], config["trainer.bf16"]) == (("float32", True) if masters else ("bfloat16", False))
    assert config["model.trust_remote_code"] is False
    if verb == "sft":
        assert config["model.tokenizer"] in PAPER["checkpoints"]
        assert PAPER["checkpoints"][config["model.tokenizer"]]["recipe"] == name
        assert (config["trainer.packing"], config["trainer.packing_strategy"]) == (True, "wrapped")
        assert (config["rows.decontaminate"], config["rows.shuffle_seed"]) == ("humaneval", 42)
        assert config["text.system_message"] == "auto"
        return
    assert config["pairs.shuffle_seed"] == 42
    assert (config["variant"], config["text.special_tokens"]) == ("released", "released")
    assert config["trainer.per_device_train_batch_size"] == 1
    assert PAPER["checkpoints"][config["model.name"]]["recipe"].endswith("-sft")
    if verb == "reward":
        steps = 50 if name.startswith("gemma-2b") else 100
        assert (config["trainer.eval_steps"], config["trainer.per_device_eval_batch_size"]) == (steps, 8)
        assert (config["model.attn_implementation"], config["trainer.save_strategy"]) == (None, "epoch")
        assert config["trainer.save_total_limit"] is None
        assert config.get("trainer.save_only_model", False) == (not name.startswith("gemma-2b"))
    else:
        shp = "-shp" in name
        assert config["text.boundary"] == "released"
        assert config["pairs.decontaminate"] == (None if shp else "humaneval")
        assert config["trainer.save_steps"] == (859 if shp else 950)
        assert "trainer.save_only_model" not in config


def test_the_errata_have_every_row():
    found = {
        int(number)
        for row in re.findall(r"^\| (Q[\dQ, ]+) \|", ERRATA, flags=re.MULTILINE)
        for number in re.findall(r"\d+", row)
    }
    assert found == set(range(1, 41))


def test_options_named_in_the_errata_exist():
    keys = {key for verb in APP.verbs for key in known_keys(load_object(verb.schema))}
    keys |= {f"loss.{field.name}" for objective in OBJECTIVES.values() for field in fields(objective)}
    sections = {key.partition(".")[0] for key in keys}
    named = re.findall(r"`([a-z_]+(?:\.[a-z_]+)+\*?|[a-z_]+\.[a-z_.]+\*)[`:]", ERRATA)
    options = [name for name in named if name.partition(".")[0] in sections - {"trainer"}]
    assert len(options) > 15
    for name in options:
        if name.endswith("*"):
            assert any(key.startswith(name.rstrip("*")) for key in keys), name
        else:
            assert name in keys, name


def test_pins_named_in_the_errata_exist():
    adapters = (Path(__file__).parent / "golden_adapters.py").read_text(encoding="utf-8")
    for name in set(re.findall(r"test_\w+\.py", ERRATA)):
        assert list(ROOT.glob(f"packages/*/tests/{name}")), name
    for row in re.findall(r"golden ((?:`\w+`(?:, )?)+)", ERRATA):
        for name in re.findall(r"`(\w+)`", row):
            assert re.search(rf"^def {name}_?\(", adapters, re.MULTILINE), name
