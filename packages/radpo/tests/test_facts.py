"""Every published recipe comes to the facts of the published launch, which paper.yaml keeps with their sources."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import islice
from typing import Any

import pytest

from reproalign.common.command.recipes import read_headers
from reproalign.common.data.records import user
from reproalign.common.testing import assert_facts, launch_facts, read_facts, recipe_config
from reproalign.common.testing.facts import by_family
from reproalign.radpo.batches import lay_out
from reproalign.radpo.cli import APP
from reproalign.radpo.config import TrainConfig
from reproalign.radpo.data import held_out_batches
from reproalign.radpo.examples import Example
from reproalign.radpo.released import loss_scale
from reproalign.radpo.rows import RowRules, build_rows, released_length
from reproalign.radpo.rules import rules_of
from reproalign.radpo.train import dropout_of, with_template
from reproalign.radpo.training_rows import row_rules, schedule

FACTS = read_facts("reproalign.radpo")
PUBLISHED = [
    name
    for name, header in read_headers("reproalign.radpo").items()
    if header["verb"] == "train" and not name.startswith(("smoke", "smollm2"))
]
PER_PAIR = {"paired": 1, "unpaired": 2, "mismatched": 2}


def family(name: str) -> str:
    if name.startswith("imdb"):
        return "imdb"
    loss = name.removeprefix("hh-pythia-1.4b-").removeprefix("hh-pythia-2.8b-")
    return loss if loss in FACTS else "pairs"


def prompts(count: int) -> dict[str, Example]:
    names = [f"p{number:02}" for number in range(count)]
    return {name: Example(name, [user(name)], ["better", "worse"], "made", [(0, 1)]) for name in names}


def one_prompt(pairs: int) -> dict[str, Example]:
    return {"p": Example("p", [user("p")], ["better", "worse"], "made", [(0, 1)] * pairs)}


def gradient(config: TrainConfig, launch: dict[str, Any]) -> str:
    """What a step's losses come to: the Trainer takes means of micro-batches, and their mean over a step."""
    rows, here = launch["rows_per_process"], launch["processes"] * launch["accumulation"]
    share = loss_scale(config.loss, rows, here, config.released.accumulation) / here
    means = not config.loss.accumulates
    divisor = 1 / share if means else rows / share
    return f"{'mean' if means else 'sum'} over the step / {divisor:g}"


def order(rules: RowRules) -> Iterator[str]:
    batches, _ = lay_out(build_rows(prompts(12), rules), rules)
    return (row["key"] for batch in batches for row in batch)


@cache
def first_keys(rules: RowRules) -> list[str]:
    return list(islice(order(rules), 16))


@cache
def length_of(rules: RowRules, pairs: int) -> float:
    return released_length(one_prompt(pairs), rules)


@cache
def held_out_rows(rules: RowRules, limit: int | None) -> int:
    return sum(map(len, held_out_batches(one_prompt(400), rules, limit)))


@cache
def batches_of(rules: RowRules, rows: int, limit: int | None) -> int:
    return len(lay_out([{"n": number} for number in range(rows)], rules, limit)[0])


def derived(name: str) -> dict[str, Any]:
    pairs = 25000 if family(name) == "imdb" else 160800
    config = recipe_config(APP, f"experiment={name}")
    launch, kind, variant = launch_facts(config), config.loss.kind, rules_of(config.variant)
    cut = {"batch_size": launch["rows_per_process"], "accumulation": launch["accumulation"]}
    rules = row_rules(config, variant, processes=launch["processes"], **cut)
    found: dict[str, Any] = {
        "distinct_per_step": launch["rows_per_step"],
        "release_processes": config.released.processes,
        "ticks_per_step": config.released.processes,
        "gradient": gradient(config, launch),
        "dropout": dropout_of(config, variant),
        "order": first_keys(replace(rules, epochs=2, kind="paired")),
        "steps_between_evaluations": config.trainer["eval_steps"],
        "max_lengths": [config.text.max_length, config.text.max_prompt_length],
        "clean_up_spaces": rules.clean_up_spaces,
        "template": with_template(config.model, variant.halos).chat_template,
        "kl_rows": launch["rows_per_process"],
        **{name: launch[name] for name in ("weights", "compute", "max_grad_norm", "weight_decay")},
    }
    if kind in PER_PAIR:
        rows = pairs * PER_PAIR[kind]
        steps = batches_of(rules, rows, config.data.max_rows) // (launch["processes"] * launch["accumulation"])
        length = length_of(rules, pairs)
        rate = schedule(config, variant, length)(steps)
        stated = FACTS[family(name)]["rates"].value
        found |= {
            "examples": rows,
            "steps": steps,
            "schedule_length": length,
            "rates": {step: launch["learning_rate"] * rate(step) for step in stated},
            "held_out": held_out_rows(replace(rules, kind="paired"), config.data.max_eval_rows),
        }
        assert max(stated) == steps - 1
    return found


@pytest.mark.parametrize("name", by_family(PUBLISHED, family))
def test_a_recipe_comes_to_the_published_launch(name):
    assert_facts(FACTS[family(name)], derived(name))


def test_every_family_of_facts_has_a_recipe():
    assert {family(name) for name in PUBLISHED} == FACTS.keys()
