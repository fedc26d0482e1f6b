"""Every recipe composes, says what it must, and the published ones are the published command."""

from __future__ import annotations

from pathlib import Path

import pytest

from reproalign.common.command.app import find_verb
from reproalign.common.command.recipes import REQUIRED, read_headers
from reproalign.common.invocation import Invocation, structured
from reproalign.common.records.paper import load_paper
from reproalign.common.testing import accept_under_both_variants, composed, effective_batch
from reproalign.dtm.cli import APP, main
from reproalign.dtm.merge.verb import check_options as check_merge
from reproalign.dtm.run import make_plan

HEADERS = read_headers("reproalign.dtm")
PAPER = load_paper("reproalign.dtm")
PUBLISHED = [name for name in HEADERS if not name.startswith(("smoke", "smollm2"))]
TRAININGS = [name for name in PUBLISHED if HEADERS[name]["verb"] in ("run", "train", "study curves")]


def training(name):
    """The recipe's configuration, and its section of keys of ``dtm train``."""
    config = composed(APP, f"experiment={name}")
    return config, config if HEADERS[name]["verb"] == "train" else config["train"]


@pytest.mark.parametrize("name", HEADERS)
def test_a_recipe_is_complete(name):
    header = HEADERS[name]
    assert not [key for key in REQUIRED if not header.get(key)]
    assert header["command"].startswith(f"dtm {header['verb']} experiment={name}")


@pytest.mark.parametrize("name", HEADERS)
def test_a_recipe_is_accepted_under_both_variants(name):
    accept_under_both_variants(APP, name)


@pytest.mark.parametrize("name", TRAININGS)
def test_published_hyper_parameters(name):
    config, train = training(name)
    trainer = train["trainer"]
    processes = train["launch"]["processes"]
    assert (processes, train["launch"]["strategy"]) == (int(HEADERS[name]["processes"]), "ddp")
    assert effective_batch(train, processes) == int(HEADERS[name]["global_batch"]) == 16
    assert (config["variant"], config["model"]["dtype"], trainer["fp16"]) == ("released", "float16", True)
    assert (trainer["learning_rate"], trainer["lr_scheduler_type"], trainer["weight_decay"]) == (3e-4, "cosine", 0.0)
    assert (trainer["adam_beta1"], trainer["adam_beta2"], trainer["adam_epsilon"]) == (0.9, 0.98, 1e-6)
    assert trainer["max_grad_norm"] == 0.3
    assert (trainer["num_train_epochs"], trainer["warmup_steps"]) == ((3, 10) if "lima" in name else (1, 100))
    assert train["tokens"]["max_length"] == 1024


def test_the_adapters_of_every_training_are_the_published_ones():
    plain = composed(APP, "output_dir=x", "model=tiny", verb="train")
    run = composed(APP, "output_dir=x", "model=tiny", verb="run")
    for lora in (plain["model"]["lora"], run["model"]["lora"]):
        assert (lora["enabled"], lora["r"], lora["alpha"], lora["dropout"]) == (True, 16, 16, 0.05)
        assert lora["target_modules"] == ["gate_proj", "up_proj", "down_proj"]


@pytest.mark.parametrize("name", [name for name in HEADERS if HEADERS[name]["verb"] in ("run", "merge")])
def test_a_recipes_options_are_accepted(name, tmp_path, monkeypatch):
    verb, config = HEADERS[name]["verb"], composed(APP, f"experiment={name}")
    monkeypatch.chdir(tmp_path)
    Path("baize.jsonl").touch()  # which users make themselves
    meant = find_verb(APP, verb, [f"experiment={name}"])
    invocation = Invocation(["dtm", verb], APP.package, verb, meant.schema, meant.target, config)
    options = structured(invocation.schema, invocation.config)
    if verb == "run":
        make_plan(options, invocation)
    else:
        check_merge(options, ["a", "b", "c", "d"], adapters=True)


def test_every_published_setting_has_a_recipe():
    bases = {"llama-2-7b", "mistral-7b", "baichuan2-7b"}
    assert {f"{base}-{row}" for base in bases for row in ("base", "dtm")} <= HEADERS.keys()
    curves = {"llama-2-7b", "llama-2-13b", "llama-2-7b-quality", "llama-2-7b-replay"}
    assert {f"{name}-curves" for name in curves} <= HEADERS.keys()
    baselines = {"vanilla", "vanilla-80", "l2", "ewc", "replay", "deita", "soup"}
    merges = {"fisher", "task-vector", "ties", "dare", "ensemble"}
    embedded = {f"{model}-{text}" for model in ("minilm", "mpnet") for text in ("instruction", "response", "both")}
    corpora = {"alpaca-gpt4", "code-alpaca", "baize", "camel", "evol-instruct", "lima"}
    assert {f"llama-2-7b-{name}" for name in baselines | merges | embedded | corpora} <= HEADERS.keys()


@pytest.mark.parametrize("name", ["dtm", "vanilla", "ties", "base", "lima"])
def test_expected_numbers_are_those_of_the_paper(name):
    setting = "llama-2-7b-lima" if name == "lima" else "llama-2-7b"
    row = {"ties": "dtm_ties", "lima": "dtm"}.get(name, name)
    for benchmark in PAPER["nine"]:
        value = PAPER["results"][setting][row].get(benchmark)
        if value is not None:
            assert f"{benchmark} {value:.2f}" in HEADERS[f"llama-2-7b-{name}"]["expected"]


def test_a_recipe_is_shown_with_command_and_bibtex(capsys):
    assert main(["recipes", "llama-2-7b-dtm"]) == 0
    printed = capsys.readouterr().out
    assert "dtm run experiment=llama-2-7b-dtm" in printed
    assert "@inproceedings{fu2024disperse" in printed
