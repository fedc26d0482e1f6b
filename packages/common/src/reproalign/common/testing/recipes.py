"""Configurations as the command line composes them."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from typing import Any

from reproalign.common.command.app import App, find_verb
from reproalign.common.command.recipes import read_headers
from reproalign.common.invocation import structured
from reproalign.common.options.compose import compose
from reproalign.common.options.load import load_object


def composed(app: App, *words: str, verb: str | None = None) -> dict[str, Any]:
    """Return the configuration that ``words`` come to; of a recipe (``experiment=NAME``) its header names the verb."""
    name = verb or next(
        read_headers(app.package)[value]["verb"]
        for key, _, value in (word.partition("=") for word in words)
        if key == "experiment"
    )
    found = find_verb(app, name, words)
    return deepcopy(_composed(app.package, found.config_name, found.schema, words))


@cache
def _composed(package: str, config_name: str, schema: str, words: tuple[str, ...]) -> dict[str, Any]:
    return compose(package, config_name, schema, words).config


def accept(app: App, name: str, *words: str) -> dict[str, Any]:
    """Compose a recipe, check its options as its command does before it starts anything, and return them."""
    config = composed(app, f"experiment={name}", *words)
    verb = find_verb(app, read_headers(app.package)[name]["verb"], [f"experiment={name}"])
    options = structured(verb.schema, config)
    if verb.check:
        load_object(verb.check)(options)
    return config


def accept_under_both_variants(app: App, name: str) -> None:
    """Accept a recipe as it is, and under the other variant if its verb knows variants."""
    other = {"paper": "released", "released": "paper"}.get(accept(app, name).get("variant", ""))
    assert other is None or accept(app, name, f"variant={other}")["variant"] == other


def effective_batch(config: dict[str, Any], processes: int) -> int:
    """Return the pairs (or sequences) per optimiser step: processes x per-device batch x accumulation."""
    trainer = config.get("trainer", {})
    return (
        processes
        * int(trainer.get("per_device_train_batch_size", 8))
        * int(trainer.get("gradient_accumulation_steps", 1))
    )
