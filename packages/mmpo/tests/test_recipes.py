"""Every recipe composes, says what it must, and has the global batch that was published."""

from __future__ import annotations

import pytest

from reproalign.common.command.recipes import REQUIRED, read_headers
from reproalign.common.records.paper import load_paper
from reproalign.common.testing import accept_under_both_variants, composed, effective_batch
from reproalign.mmpo.cli import APP, main

HEADERS = read_headers("reproalign.mmpo")
SMALL = [name for name in HEADERS if name.startswith(("smoke", "smollm2"))]
PUBLISHED = {  # section of the spec's tables: gamma, learning rate, epochs, processes, global batch
    "gemma-2b-ultrafeedback": (2.2, 1e-5, 3, 2, 64),
    "gemma-2b-ultrafeedback-dpo": (None, 1e-5, 3, 2, 64),
    "gemma-7b-ultrafeedback": (1.1, 5e-7, 3, 4, 64),
    "gemma-7b-ultrafeedback-readme": (0.3, 5e-7, 1, 4, 64),
    "gemma-7b-ultrafeedback-dpo": (None, 5e-7, 3, 4, 64),
    "llama-3-8b-ultrafeedback": (2.2, 5e-7, 3, 4, 64),
    "llama-3-8b-ultrafeedback-dpo": (None, 5e-7, 3, 4, 64),
    "gemma-7b-shp": (1.1, 5e-7, 3, 4, 64),
    "gemma-7b-shp-dpo": (None, 5e-7, 3, 4, 64),
    "gemma-2b-reward": (None, 1.41e-5, 3, 4, 64),
    "gemma-7b-reward": (None, 3e-6, 2, 4, 32),
    "llama-3-8b-reward": (None, 3e-6, 2, 4, 32),
    "gemma-2b-reward-mmpo": (0.5, 1.41e-5, 3, 4, 64),
    "gemma-7b-reward-mmpo": (0.5, 3e-6, 2, 4, 32),
    "gemma-7b-reward-lr3e-7": (None, 3e-7, 2, 4, 32),
    "gemma-7b-reward-mmpo-lr3e-7": (0.5, 3e-7, 2, 4, 32),
    "llama-3-8b-reward-mmpo": (0.5, 3e-6, 2, 4, 32),
    "llama-3-8b-reward-lr1e-6": (None, 1e-6, 2, 4, 32),
    "llama-3-8b-reward-mmpo-lr1e-6": (0.5, 1e-6, 2, 4, 32),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_recipe_is_complete_and_its_batch_adds_up(name):
    header, config = HEADERS[name], composed(APP, f"experiment={name}")
    assert not [key for key in REQUIRED if not header.get(key)]
    assert header["command"] == f"mmpo {header['verb']} experiment={name}"
    if header["verb"] in ("mt-bench", "best-of-n"):
        assert (header["processes"], header["global_batch"]) == ("1", "none")
    else:
        assert config["launch"]["processes"] == int(header["processes"])
        assert effective_batch(config, int(header["processes"])) == int(header["global_batch"])


@pytest.mark.parametrize("name", HEADERS)
def test_a_recipe_is_accepted_under_both_variants(name):
    accept_under_both_variants(APP, name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_hyper_parameters(name):
    gamma, rate, epochs, processes, batch = PUBLISHED[name]
    config = composed(APP, f"experiment={name}")
    trainer = config["trainer"]
    assert (config["target"]["gamma"], trainer["learning_rate"], trainer["num_train_epochs"]) == (gamma, rate, epochs)
    assert (config["launch"]["processes"], effective_batch(config, processes)) == (processes, batch)
    assert (config["variant"], config["seed"], config["text"]["max_length"]) == ("released", 42, 1024)
    assert trainer["bf16"] is (config["model"]["dtype"] == "float32")
    assert trainer["gradient_checkpointing"] is True
    if HEADERS[name]["verb"] == "train":
        assert (config["loss"]["beta"], config["loss"]["name"], config["text"]["max_prompt_length"]) == (
            0.01,
            "sigmoid",
            512,
        )
        assert (trainer["lr_scheduler_type"], trainer["warmup_steps"]) == ("cosine", 0.3)
        assert config["pairs"]["cap_per_prompt"] == (5 if "shp" in name else None)
    else:
        assert (trainer["lr_scheduler_type"], config["text"]["overlong"]) == ("linear", "drop")


def test_mt_bench_and_best_of_n_are_asked_as_the_authors_asked():
    for name in HEADERS:
        config, verb = composed(APP, f"experiment={name}"), HEADERS[name]["verb"]
        if verb == "mt-bench":
            gemma = name.startswith("gemma")
            assert (config["template"], config["max_new_tokens"]) == (
                ("gemma-custom", 512) if gemma else ("chat", 1024)
            )
            assert (config["temperatures"], config["top_k"], config["seed"]) == ({}, 50, 0)
            assert config["endpoint"]["request"] == {"temperature": 0.0, "max_tokens": 2048}
            assert config["prompts"]
            assert config["references"]
        if verb == "best-of-n":
            facts = load_paper("reproalign.mmpo")["best_of_n"]
            family = name.removesuffix("-best-of-n")
            assert config["n"] == facts[family].get("n", facts[family]["candidates"])
            assert config["reward"]["dtype"] == "float32"
            assert config["rendering"] == ("released" if family.startswith("gemma") else "training")
            assert (config["seed"], config["top_k"], config["max_new_tokens"]) == (
                0,
                50,
                facts["max_new_tokens"]["value"],
            )


def test_every_published_recipe_has_a_target_or_says_that_none_was_published():
    targets = load_paper("reproalign.mmpo")["targets"]
    assert targets.keys() <= HEADERS.keys()
    for name in HEADERS.keys() - targets.keys() - set(SMALL):
        assert any(words in HEADERS[name]["expected"] for words in ("no number", "direction only")), name


@pytest.mark.parametrize("name", ["gemma-7b-ultrafeedback", "smoke"])
def test_a_recipe_is_shown_with_command_numbers_and_bibtex(name, capsys):
    assert main(["recipes", name]) == 0
    printed = capsys.readouterr().out
    assert HEADERS[name]["command"] in printed
    assert "@inproceedings{kim2024margin" in printed
    assert ("7.53" in printed) == (name != "smoke")


def test_unknown_recipes_are_refused(capsys):
    assert main(["recipes", "gemma-7b"]) == 2
    assert "unknown recipe 'gemma-7b'" in capsys.readouterr().err
