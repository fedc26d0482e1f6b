"""Configurations as the command line composes them."""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from typing import Any

from reproalign.common.command.app import App, find_verb
from reproalign.common.command.recipes import read_headers
from reproalign.common.options.compose import compose


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


def effective_batch(config: dict[str, Any], processes: int) -> int:
    """Return the pairs (or sequences) per optimiser step: processes x per-device batch x accumulation."""
    trainer = config.get("trainer", {})
    return (
        processes
        * int(trainer.get("per_device_train_batch_size", 8))
        * int(trainer.get("gradient_accumulation_steps", 1))
    )
