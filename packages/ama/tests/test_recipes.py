"""Every recipe composes, says what it must, and has the published settings; its options are accepted."""

from __future__ import annotations

from pathlib import Path

import pytest

from reproalign.ama.average.verb import check_options as check_average
from reproalign.ama.cli import APP, main
from reproalign.ama.study.published import published_points
from reproalign.common.command.app import find_verb
from reproalign.common.command.recipes import REQUIRED, read_headers
from reproalign.common.errors import UserError
from reproalign.common.invocation import structured
from reproalign.common.records.paper import load_paper
from reproalign.common.testing import accept, accept_under_both_variants, composed, effective_batch

HEADERS = read_headers("reproalign.ama")
PAPER = load_paper("reproalign.ama")
OURS = ("smoke", "smollm2")
PUBLISHED = [name for name in HEADERS if not name.startswith(OURS)]
BATCHES = {"align sft": lambda config: config, "align dpo": lambda config: config, "reward": lambda config: config}
BATCHES["align raft"] = lambda config: config["train"]
# Tables 2 to 4: learning rate, epochs, schedule.
TABLES = {
    "open-llama-3b-sharegpt-sft": (1e-5, 1, "cosine"),
    "open-llama-3b-hh-sft": (1e-5, 1, "cosine"),
    "open-llama-3b-rm-sft": (2e-5, 2, "cosine"),
    "open-llama-3b-rm": (5e-6, 1, "cosine"),
    "open-llama-3b-rsf": (1e-5, 2, "constant"),
    "open-llama-3b-rsf-lora-all": (1e-5, 2, "constant"),
    "open-llama-3b-rsf-lora-mlp": (1e-5, 2, "constant"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_recipe_is_complete(name):
    header = HEADERS[name]
    assert not [key for key in REQUIRED if not header.get(key)]
    assert header["command"].startswith(f"ama {header['verb']} experiment={name}")


@pytest.mark.parametrize("name", HEADERS)
def test_a_recipe_is_accepted_under_both_variants(name):
    if name == "open-llama-3b-adamerging":  # its method is the other variant's: no released run has it
        accept(APP, name)
        with pytest.raises(UserError, match="variant=released is the release's optimiser, not solver=exact"):
            accept(APP, name, "variant=released")
    else:
        accept_under_both_variants(APP, name)


@pytest.mark.parametrize("name", [name for name in HEADERS if HEADERS[name]["verb"] in BATCHES])
def test_the_batch_is_the_published_one(name):
    section = BATCHES[HEADERS[name]["verb"]](composed(APP, f"experiment={name}"))
    processes = section.get("launch", {}).get("processes", 1)
    assert processes == int(HEADERS[name]["processes"])
    assert effective_batch(section, processes) == int(HEADERS[name]["global_batch"])


@pytest.mark.parametrize("name", TABLES)
def test_settings_of_the_tables(name):
    section = BATCHES[HEADERS[name]["verb"]](composed(APP, f"experiment={name}"))
    trainer = section["trainer"]
    rate, epochs, schedule = TABLES[name]
    assert (trainer["learning_rate"], trainer["num_train_epochs"], trainer["lr_scheduler_type"]) == (
        rate,
        epochs,
        schedule,
    )
    assert trainer.get("warmup_steps", 0) == (0.03 if schedule == "cosine" else 0)


@pytest.mark.parametrize("name", [name for name in HEADERS if HEADERS[name]["verb"] == "align ppo"])
def test_settings_of_ppo(name):
    config = composed(APP, f"experiment={name}")
    assert (config["prompts_per_iteration"], config["update_batch_size"]) == (512, 32)
    assert (config["reward_baseline"], config["epochs"], config["learning_rate"]) == (5.5625, None, None)
    assert f"kl-{config['kl']['coef']}" in name
    lora = config["model"]["lora"]
    assert (lora["enabled"], lora["r"], lora["alpha"], lora["dropout"]) == ("lora" in name, 16, 32, 0.05)


@pytest.mark.parametrize("name", [name for name in HEADERS if HEADERS[name]["verb"] == "average"])
def test_the_options_of_an_average_are_accepted(name):
    verb, config = HEADERS[name]["verb"], composed(APP, f"experiment={name}")
    meant = find_verb(APP, verb, [f"experiment={name}"])
    check_average(structured(meant.schema, config))


def test_every_published_series_has_a_recipe():
    """Each curve of the figures is drawn by the recipe of a front, or named by the recipe that trains its points."""
    methods = {point.method for point in published_points()} - {"pre", "post"}
    text = " ".join(
        (Path(__file__).parents[1] / "src/reproalign/ama/configs/experiment" / f"{name}.yaml").read_text(
            encoding="utf-8"
        )
        for name in PUBLISHED
    )
    drawn = {"ma": "frontier-rsf", "hma": "hma:", "part": "parts: {parts", "pattern": "patterns:", "graft": "graft:"}
    drawn |= {"adamerging": "objective: labelled"}
    for method in methods:
        assert drawn.get(method, f"method: {method}") in text, method


def test_targets_belong_to_recipes():
    assert PAPER["targets"].keys() <= HEADERS.keys()


def test_a_recipe_is_shown_with_command_and_bibtex(capsys):
    assert main(["recipes", "open-llama-3b-hma-rsf"]) == 0
    printed = capsys.readouterr().out
    assert "ama adapt experiment=open-llama-3b-hma-rsf" in printed
    assert "@inproceedings" in printed
