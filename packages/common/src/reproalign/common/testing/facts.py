"""Facts about published launches: what a paper's package states of them, and what its recipes come to.

``paper.yaml`` keeps them under ``facts:``, by family of recipes and name, each with its value and where it is from::

    facts:
      hh-pythia-1.4b:
        examples_per_step: {value: 16, source: "train/dataloader.py: every process goes through all rows"}

A package's test derives the same names from its recipes with the functions that a run calls, and compares.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import TrainingArguments, get_scheduler

from reproalign.common.command.app import App, find_verb
from reproalign.common.command.recipes import read_headers
from reproalign.common.invocation import structured
from reproalign.common.records.paper import load_paper
from reproalign.common.testing.recipes import composed


@dataclass(frozen=True)
class Fact:
    """A fact of a published launch, and its source: a file and line, a printed sentence, or what it follows from."""

    value: Any
    source: str


def read_facts(package: str) -> dict[str, dict[str, Fact]]:
    """Read the section ``facts`` of a package's ``paper.yaml``: {family: {name: fact}}.

    Raises:
        AssertionError: for an entry that is not a value with its source.
    """
    families = load_paper(package).get("facts", {})
    for family, entries in families.items():
        for name, entry in entries.items():
            whole = isinstance(entry, dict) and entry.keys() == {"value", "source"} and bool(entry["source"])
            assert whole, f"facts.{family}.{name} must be {{value: …, source: …}}, not {entry!r}"
    return {
        family: {name: Fact(entry["value"], str(entry["source"])) for name, entry in entries.items()}
        for family, entries in families.items()
    }


def recipe_config(app: App, *words: str, verb: str | None = None) -> Any:
    """Return the configuration that ``words`` (``experiment=NAME`` above all) come to, as its verb gets it.

    Args:
        app: of the paper.
        *words: as on the command line.
        verb: null: the one in the recipe's header.
    """
    recipe = next((word.partition("=")[2] for word in words if word.startswith("experiment=")), None)
    name = verb or read_headers(app.package)[str(recipe)]["verb"]
    return structured(find_verb(app, name, words).schema, composed(app, *words, verb=name))


def launch_facts(config: Any) -> dict[str, Any]:
    """Return what any training configuration says of its launch.

    ``processes``; ``rows_per_process`` and ``accumulation`` of a step; ``rows_per_step``, their product with the
    processes; ``weights``, the dtype in which weights and optimiser states are held; ``compute``, that of autocast, or
    that of the weights where there is none; ``launch``, the strategy; ``learning_rate``, its peak; ``max_grad_norm`` as
    the Trainer takes it; ``weight_decay``; ``epochs``.
    """
    trainer, processes = config.trainer, config.launch.processes
    rows, accumulation = (
        int(trainer.get(key, default))
        for key, default in (("per_device_train_batch_size", 8), ("gradient_accumulation_steps", 1))
    )
    autocast = next((name for key, name in (("bf16", "bfloat16"), ("fp16", "float16")) if trainer.get(key)), None)
    return {
        "processes": processes,
        "rows_per_process": rows,
        "accumulation": accumulation,
        "rows_per_step": processes * rows * accumulation,
        "weights": config.model.dtype,
        "compute": autocast or config.model.dtype,
        "launch": config.launch.strategy,
        "learning_rate": float(trainer.get("learning_rate", 5e-5)),
        "max_grad_norm": float(trainer.get("max_grad_norm", 1.0)),
        "weight_decay": float(trainer.get("weight_decay", 0.0)),
        "epochs": trainer.get("num_train_epochs", 3),
    }


def assert_facts(stated: dict[str, Fact], derived: dict[str, Any], *, rel: float = 1e-6) -> None:
    """Assert that every stated fact is derived, and equal: numbers to ``rel``, everything else exactly.

    Raises:
        AssertionError: naming the facts that differ, with their source, and those that nothing derives.
    """
    missing = sorted(stated.keys() - derived.keys())
    assert not missing, f"facts that the test derives from no recipe: {missing}"
    wrong = [
        f"{name}: the recipe comes to {derived[name]!r}, the fact is {fact.value!r} ({fact.source})"
        for name, fact in stated.items()
        if not _agree(derived[name], fact.value, rel)
    ]
    assert not wrong, "\n".join(wrong)


def _agree(found: Any, stated: Any, rel: float) -> bool:
    if isinstance(stated, dict):
        return (
            isinstance(found, dict)
            and found.keys() == stated.keys()
            and all(_agree(found[key], value, rel) for key, value in stated.items())
        )
    if isinstance(stated, list):
        return (
            isinstance(found, list | tuple)
            and len(found) == len(stated)
            and all(_agree(*both, rel) for both in zip(found, stated, strict=True))
        )
    if isinstance(stated, float) or isinstance(found, float):
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (stated, found))
        return numbers and found == pytest.approx(stated, rel=rel)
    return type(found) is type(stated) and bool(found == stated)


def scheduled_rates(arguments: TrainingArguments, total: int, steps: Collection[int]) -> dict[int, float]:
    """Learning rates after so many of ``total`` optimiser steps, by the scheduler that the Trainer builds."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=arguments.learning_rate)
    schedule = get_scheduler(arguments.lr_scheduler_type, optimizer, arguments.get_warmup_steps(total), total)
    found = {}
    for step in range(1, total + 1):
        optimizer.step()
        schedule.step()
        if step in steps:
            found[step] = schedule.get_last_lr()[0]
    return found


def by_family(recipes: Iterable[str], family: Callable[[str], str | None]) -> list[Any]:
    """Return recipes as parameters of a test: of each family that has facts the first, and the others marked slow.

    Members of a family differ in what has no facts of its own, such as the measure or the seed.

    Args:
        recipes: their names.
        family: of a recipe; None: it has no facts.
    """
    seen: set[str | None] = {None}
    found = []
    for name in recipes:
        if family(name) is not None:
            found.append(pytest.param(name, marks=[pytest.mark.slow] if family(name) in seen else []))
        seen.add(family(name))
    return found
