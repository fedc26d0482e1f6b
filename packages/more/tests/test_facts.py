"""What the training recipes come to, without training, beside what is known of the published launches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_scheduler

from reproalign.common.command.recipes import read_headers
from reproalign.common.testing.facts import assert_facts, by_family, launch_facts, read_facts, recipe_config
from reproalign.more.balance import settle_weights
from reproalign.more.cli import APP
from reproalign.more.groups import resample
from reproalign.more.released import rules_of, warmup_decay

FACTS = read_facts("reproalign.more")
PER_FAMILY = {"held_out", "training"}  # not families, but sizes of the data
ALIGNMENT = {name for name in FACTS if name.startswith("alpaca-")}  # test_alignment_facts.py
RECIPES = [name for name, header in read_headers("reproalign.more").items() if "experiment=" in header["command"]]
TRAINING = [name for name in RECIPES if name.startswith(("pythia-", "llama-"))]


def family(name: str) -> str:
    """The family that a recipe is of, by its name."""
    if name.endswith("-multitask"):
        return "multitask"
    if name.endswith("-more-paper"):
        return "more-paper"
    return "more" if "-more" in name else "single"


def rates(config: Any, steps: int) -> dict[int, float]:
    """The learning rate of every step, by the schedule that the run makes."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.trainer["learning_rate"])
    warmup = int(config.trainer.get("warmup_steps", 0))
    if config.variant == "released":
        schedule = LambdaLR(optimizer, warmup_decay(steps, warmup))
    else:
        schedule = get_scheduler(config.trainer.get("lr_scheduler_type", "linear"), optimizer, warmup, steps)
    found = {}
    for step in range(steps):
        found[step] = optimizer.param_groups[0]["lr"]
        optimizer.step()
        schedule.step()
    return found


def derived(name: str) -> dict[str, Any]:
    """The facts of a recipe, from its configuration and the published sizes of the data sets."""
    config = recipe_config(APP, f"experiment={name}")
    facts, data, text, kind = launch_facts(config), config.data, config.text, config.variant
    trained = data.train_domains or data.names()
    sizes = [min(FACTS["training"][domain].value, data.sets[domain].first or 10**9) for domain in trained]
    picks = resample(sizes, data.resampling_size, names=trained, rule=rules_of(kind).resample, seed=config.seed)
    grouped = config.method == "more"
    rows = len(picks[0]) if grouped else sum(map(len, picks))
    steps = rows // facts["rows_per_step"]
    assert rows % facts["rows_per_step"] == 0
    weights = settle_weights(config.weights, trained, rules_of(kind).weights)
    of_lambda = facts["rows_per_step"] if kind == "paper" else facts["rows_per_process"]
    every = rates(config, steps)
    stated = FACTS[family(name)].get("learning_rates")
    return facts | {
        "items_per_step": facts["rows_per_step"] * (len(trained) if grouped else 1),
        "max_length": text.max_length,
        "resampling_size": data.resampling_size,
        "pooling": config.model.pooling,
        "truncation_side": text.truncation_side,
        "padding_side": text.padding_side,
        "order": config.trainer.get("train_sampling_strategy", "random"),
        "steps": steps,
        "learning_rates": {step: every[step] for step in stated.value} if stated else {},
        "pairs_per_preference_and_lambda": of_lambda,
        "lambdas_per_step": facts["rows_per_step"] // of_lambda,
        "normalize": weights.normalize,
        "alpha": weights.alpha,
        "solver": weights.solver,
    }


@pytest.mark.parametrize("name", by_family(TRAINING, family))
def test_a_recipe_comes_to_the_published_launch(name: str) -> None:
    facts, found = dict(FACTS[family(name)]), derived(name)
    if "compute" in facts:  # the one difference, ERRATA Q21
        assert (facts.pop("compute").value, found["compute"]) == ("float16", "bfloat16")
    if "-more-k" in name:  # fewer domains, 16 items of each as before
        facts.pop("items_per_step")
        assert found["items_per_step"] == 16 * int(name[-1])
    assert_facts(facts, found)


def test_every_family_has_recipes_and_every_recipe_a_family() -> None:
    assert {family(name) for name in TRAINING} == FACTS.keys() - PER_FAMILY - ALIGNMENT
    assert len(TRAINING) == 4 * (3 + 5) + 3


def test_the_held_out_rows_are_those_of_the_tables() -> None:
    data = recipe_config(APP, "experiment=pythia-1.4b-more").data
    assert data.names() == list(FACTS["held_out"])
    firsts = {name: one.eval_first for name, one in data.sets.items() if one.eval_first}
    assert firsts == {"summarize": FACTS["held_out"]["summarize"].value}
    # 95/5 of webgpt's rows: 17,106 and 901.
    held, kept = FACTS["held_out"]["webgpt"].value, FACTS["training"]["webgpt"].value
    assert data.eval_fraction == pytest.approx(held / (held + kept), abs=1e-3)
