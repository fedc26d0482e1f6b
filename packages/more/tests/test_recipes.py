"""Every recipe composes, says what it must, and has the published batch: 16 groups of one item per domain."""

from __future__ import annotations

import pytest

from reproalign.common.recipes import REQUIRED, effective_batch, read_headers
from reproalign.common.records.paper import load_paper
from reproalign.common.testing import composed
from reproalign.more.cli import APP, main

HEADERS = read_headers("reproalign.more")
PAPER = load_paper("reproalign.more")
PUBLISHED = [
    name for name, header in HEADERS.items() if header["verb"] == "train" and not name.startswith(("smoke", "smollm2"))
]


@pytest.mark.parametrize("name", HEADERS)
def test_a_recipe_is_complete_and_its_batch_adds_up(name):
    header, config = HEADERS[name], composed(APP, f"experiment={name}")
    assert not [key for key in REQUIRED if not header.get(key)]
    assert header["command"].startswith(f"more-rm {header['verb']} experiment={name}")
    assert config.get("launch", {"processes": 1})["processes"] == int(header["processes"])
    if header["verb"] in ("train", "align"):
        assert effective_batch(config, int(header["processes"])) == int(header["global_batch"])
    else:
        assert header["global_batch"] == "none"
    assert config["output_dir"] == f"runs/{name}"


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_hyper_parameters(name):
    config, run = composed(APP, f"experiment={name}"), PAPER["published_runs"]["reward_models"]
    trainer, data = config["trainer"], config["data"]
    assert data["domains"] == run["domains"]
    assert (data["max_length"], data["resampling_size"]) == (run["max_length"], run["resampling_size"])
    assert (data["truncation_side"], data["padding_side"]) == (run["truncation_side"], "right")
    assert (trainer["learning_rate"], trainer["num_train_epochs"]) == (run["learning_rate"], run["epochs"])
    assert (config["weights"]["normalize"], config["weights"]["alpha"]) == (run["normalize"], run["alpha"])
    assert (config["weights"]["rule"], config["model"]["pooling"]) == ("min-norm", run["pooling"])
    assert (config["seed"], config["variant"]) == (run["seed"], "released")
    assert (config["launch"]["strategy"], config["launch"]["processes"]) == ("zero3-offload", run["processes"])
    items = 5 if config["method"] == "more" else 1
    assert effective_batch(config, 8) * items == run["groups_per_step"] * len(run["domains"])
    assert config["method"] == ("more" if name.endswith("-more") else "multitask")


def test_every_published_run_has_a_recipe():
    run = PAPER["published_runs"]["reward_models"]
    for model in ("pythia-1.4b", "llama-2-7b"):
        assert {f"{model}-{method}" for method in run["methods"]} <= HEADERS.keys()
    for domain in run["domains"]:
        config = composed(APP, f"experiment=pythia-1.4b-{domain}")
        assert config["data"]["train_domains"] == [domain]
    sampling = composed(APP, "model=alpaca-7b", "prompts=x", "output_dir=y", verb="sample")
    assert {name: sampling[name] for name in ("n", "max_new_tokens")} == {"n": 4, "max_new_tokens": 256}


def test_a_recipe_is_shown_with_command_and_bibtex(capsys):
    assert main(["recipes", "pythia-1.4b-more"]) == 0
    printed = capsys.readouterr().out
    assert "more-rm train experiment=pythia-1.4b-more" in printed
    assert "@inproceedings{zeng2024diversified" in printed
