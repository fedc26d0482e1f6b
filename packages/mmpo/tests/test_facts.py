"""What a published launch comes to, computed from the recipes without training, against the facts of paper.yaml."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import TrainingArguments

from reproalign.common.command.recipes import read_headers
from reproalign.common.testing import Fact, assert_facts, launch_facts, read_facts, recipe_config
from reproalign.common.testing.facts import by_family, scheduled_rates
from reproalign.mmpo.cli import APP
from reproalign.mmpo.config import PreferenceConfig, RewardConfig, SFTRunConfig
from reproalign.mmpo.released import count_steps

FACTS = read_facts("reproalign.mmpo")
PUBLISHED = [
    name
    for name, header in read_headers("reproalign.mmpo").items()
    if header["verb"] in ("train", "reward", "sft") and not name.startswith(("smoke", "smollm2"))
]
# Recipes that are another family's run but for their labels, or for what was never published.
LIKE = {
    "gemma-2b-shp": None,  # no recipe was released
    "gemma-2b-shp-dpo": None,
    "gemma-7b-ultrafeedback-readme": None,  # one epoch
    "gemma-7b-reward-mmpo-lr3e-7": "gemma-7b-reward-lr3e-7",
    "llama-3-8b-reward-mmpo-lr1e-6": "llama-3-8b-reward-lr1e-6",
}


def family(recipe: str) -> str | None:
    return LIKE[recipe] if recipe in LIKE else recipe.removesuffix("-dpo").removesuffix("-mmpo")


def steps_of(config: Any, rows: int) -> tuple[int, int]:
    facts = launch_facts(config)
    steps = count_steps(
        rows, facts["processes"], facts["rows_per_process"], facts["accumulation"], float(facts["epochs"])
    )
    return steps.per_epoch, steps.total


def rows_that_make(config: Any, per_epoch: int, near: int) -> list[int]:
    """The fewest and the most rows of which an epoch has so many steps, around ``near``."""
    low = high = near
    while steps_of(config, low - 1)[0] == per_epoch:
        low -= 1
    while steps_of(config, high + 1)[0] == per_epoch:
        high += 1
    return [low, high]


def derived(config: Any, stated: dict[str, Fact], folder: Any) -> dict[str, Any]:
    trainer = config.trainer
    found = launch_facts(config)
    found["schedule"] = trainer["lr_scheduler_type"]
    found["dropout"] = "none" if isinstance(config, PreferenceConfig) and config.variant == "released" else "all"
    text = config.text
    found["max_length"] = text.max_length
    found["lengths"] = [text.max_length, getattr(text, "max_prompt_length", None)]
    found["system_message"], found["overlong"] = text.system_message, getattr(text, "overlong", None)
    found["special_tokens"], found["held_out"] = (
        getattr(text, "special_tokens", None),
        next(iter(config.data.sets.values())).eval_split,
    )
    found["attention"], found["save"] = config.model.attn_implementation, trainer["save_strategy"]
    when = trainer.get("eval_strategy", "no")
    found["evaluation"] = when if when == "no" else f"{when} {trainer.get('eval_steps')}"
    rules = config.rows if isinstance(config, SFTRunConfig) else config.pairs
    found["shuffle_seed"], found["decontaminate"] = rules.shuffle_seed, rules.decontaminate
    found["cap_per_prompt"] = getattr(rules, "cap_per_prompt", None)
    found["packing"] = trainer.get("packing_strategy") if trainer.get("packing") else None
    keys = ("learning_rate", "lr_scheduler_type", "warmup_steps", "num_train_epochs")
    arguments = TrainingArguments(
        str(folder), use_cpu=True, report_to=[], **{key: trainer[key] for key in keys if key in trainer}
    )
    found["warmup_steps"] = arguments.get_warmup_steps(10)
    if "rows" in stated:
        low, high = stated["rows"].value
        counts = {steps_of(config, rows) for rows in (low, high)}
        assert len(counts) == 1, "the stated rows do not all make as many steps"
        ((found["steps_per_epoch"], found["steps"]),) = counts
        found["rows"] = [low, high]
        found["warmup_steps"] = arguments.get_warmup_steps(found["steps"])
        found["rate_at"] = scheduled_rates(arguments, found["steps"], stated["rate_at"].value)
    return found


@pytest.mark.parametrize("recipe", by_family(PUBLISHED, family))
def test_a_recipe_comes_to_the_published_launch(recipe, tmp_path):
    stated = FACTS[str(family(recipe))]
    config = recipe_config(APP, f"experiment={recipe}")
    assert isinstance(config, PreferenceConfig | RewardConfig | SFTRunConfig)
    assert config.variant == "released"
    assert_facts(stated, derived(config, stated, tmp_path))


def test_every_recipe_has_its_facts_or_is_named_as_without():
    assert {family(name) for name in PUBLISHED} - {None} == FACTS.keys()


@pytest.mark.parametrize(
    ("recipes", "per_epoch"),
    [
        (["gemma-2b-ultrafeedback", "gemma-7b-ultrafeedback"], 950),
        (["gemma-7b-shp"], 859),
        (["llama-3-8b-reward-lr1e-6"], 1797),
        (["gemma-2b-sft", "gemma-7b-sft"], 954),
        (["llama-3-8b-sft"], 935),
    ],
)
def test_the_steps_per_epoch_say_how_many_rows_were_kept(recipes, per_epoch):
    """The rows that all launches on the same data agree on; one row fewer or more would be another step."""
    stated = FACTS[recipes[0]]["rows"].value
    ranges = [rows_that_make(recipe_config(APP, f"experiment={name}"), per_epoch, sum(stated) // 2) for name in recipes]
    assert [max(low for low, _ in ranges), min(high for _, high in ranges)] == stated
