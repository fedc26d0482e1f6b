"""Every recipe composes and says what it must; ``test_facts.py`` holds the numbers of the published launch."""

from __future__ import annotations

import pytest

from reproalign.common.command.recipes import REQUIRED, read_headers
from reproalign.common.records.paper import load_paper
from reproalign.common.testing import accept_under_both_variants, composed, effective_batch
from reproalign.more.cli import APP, main

HEADERS = read_headers("reproalign.more")
PAPER = load_paper("reproalign.more")


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


@pytest.mark.parametrize("name", HEADERS)
def test_a_recipe_is_accepted_under_both_variants(name):
    accept_under_both_variants(APP, name)


def test_every_published_run_has_a_recipe():
    run = PAPER["published_runs"]["reward_models"]
    for base in run["bases"]:
        for method in run["methods"]:
            assert composed(APP, f"experiment={base}-{method}")["method"] == method
        for domain in run["domains"]:
            config = composed(APP, f"experiment={base}-{domain}")
            assert (config["method"], config["data"]["train_domains"]) == ("multitask", [domain])
            assert list(config["data"]["sets"]) == run["domains"]
    for count in (2, 3, 4):  # figure 6; all five are the recipe without a number
        config = composed(APP, f"experiment=llama-2-7b-more-k{count}")
        assert config["data"]["train_domains"] == run["domains"][:count]
    sampling = composed(APP, "model=alpaca-7b", "prompts=x", "output_dir=y", verb="sample")
    assert {name: sampling[name] for name in ("n", "max_new_tokens")} == {"n": 4, "max_new_tokens": 256}


def test_a_recipe_is_shown_with_command_and_bibtex(capsys):
    assert main(["recipes", "pythia-1.4b-more"]) == 0
    printed = capsys.readouterr().out
    assert "more-rm train experiment=pythia-1.4b-more" in printed
    assert "@inproceedings{zeng2024diversified" in printed
