"""What holds for every key of every verb of every package: a meaning, an allowed default, a use, and a way back."""

from __future__ import annotations

import ast
import importlib
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from papers import CLIS, CORE, ROOT
from reproalign.common.errors import UserError
from reproalign.common.invocation import Verb
from reproalign.common.mappings import flatten
from reproalign.common.options.check import check_option
from reproalign.common.options.compose import Composed, compose, in_force
from reproalign.common.options.groups import options, verb_groups
from reproalign.common.options.keys import Field, keys
from reproalign.common.options.words import as_word

NOTING = {  # they declare keys or write down what was set
    f"reproalign.common.{name}"
    for name in ("config.run", "options", "records.card", "records.groups", "records.record")
}
VERBS = [
    pytest.param(
        cli.APP.package,
        verb,
        id=f"{cli.APP.package.rpartition('.')[2]}-{verb.name}{'-' if verb.when else ''}{verb.when}",
    )
    for cli in [*CLIS, CORE]
    for verb in cli.APP.verbs
]


@cache
def by_default(package: str, config_name: str, schema: str) -> Composed:
    return in_force(package, config_name, schema, [])


def declared(package: str, verb: Verb) -> list[tuple[str, Field]]:
    """The keys of a verb, those of sections that are chosen by their names as they are by default."""
    return list(keys(by_default(package, verb.config_name, verb.schema).schema))


@pytest.mark.parametrize("package, verb", VERBS)
def test_every_key_says_what_it_means_what_null_is_and_has_a_default_that_is_allowed(package, verb):
    for key, field in declared(package, verb):
        assert field.option is not None, f"{key} is not declared with option()"
        null = field.option.null
        assert bool(null) == field.optional or field.option.types, f"{key}: null is {'' if null else 'not '}said"
        if field.default not in (None, "???"):
            check_option(field.option, key, field.default)


@pytest.mark.parametrize(
    "verb, key, value, message",
    [
        ("common judge", "pairrm.dtype", "float31", "unknown pairrm.dtype 'float31' (did you mean 'float32'?)"),
        ("common judge", "pairrm.orders", "three", "unknown pairrm.orders 'three'"),
        ("common judge", "pairrm.batch_size", 0, "pairrm.batch_size=0 must be at least 1"),
        ("common judge", "endpoint.parallel", 0, "endpoint.parallel=0 must be at least 1"),
        ("common judge", "max_instructions", 0, "max_instructions=0 must be at least 1"),
        ("common judge", "confidence", 1.0, "confidence=1.0 must be above 0 and below 1"),
        ("common mt-bench", "confidence", 0.0, "confidence=0.0 must be above 0 and below 1"),
        ("common mt-bench", "resamples", 99, "resamples=99 must be at least 100"),
        ("more evaluate", "confidence", 1.0, "confidence=1.0 must be above 0 and below 1"),
        ("more sample", "top_k", -1, "top_k=-1 must be at least 0"),
        ("more sample", "clean", "lm", "unknown clean 'lm'"),
        ("more sample", "launch.strategy", "zero4", "unknown launch.strategy 'zero4' (did you mean 'zero3'?)"),
        ("more sample", "launch.machines", 0, "launch.machines=0 must be at least 1"),
        ("more sample", "model.gemma_numerics", "old", "unknown model.gemma_numerics 'old'"),
        ("more select", "keep", "bst", "unknown keep 'bst' (did you mean 'best'?)"),
        ("more select", "discard", "short", "unknown discard 'short'"),
        ("more select", "min_reward", math.nan, "min_reward=nan must be finite"),
        ("more perplexity", "max_length", 1, "max_length=1 must be at least 2"),
        ("more perplexity", "gate", 0.5, "gate=0.5 must be at least 1"),
        ("more study tables", "outliers.rule", "iqr", "unknown outliers.rule 'iqr'"),
        ("more train", "data.oasst1_pairs", "every", "unknown data.oasst1_pairs 'every'"),
        ("more train", "data.resampling_size", 0, "data.resampling_size=0 must be at least 1"),
        ("more train", "weights.fixed", {"a": -1.0}, "weights.fixed.a=-1.0 must be at least 0"),
        ("more train", "weights.solver", "nnls", "unknown weights.solver 'nnls'"),
        ("ama frontier", "alphas", [0.5, 1.3], "alphas[1]=1.3 must be from 0 to 1"),
        ("ama adapt", "allow", ["everything"], "unknown allow[0] 'everything'"),
        ("ama average", "allow", ["everything"], "unknown allow[0] 'everything'"),
        ("ama average", "fraction", 1.5, "fraction=1.5 must be above 0 and at most 1"),
        ("ama average", "threads", 0, "threads=0 must be at least 1"),
        ("ama average", "variant", "release", "unknown variant 'release' (did you mean 'released'?)"),
        ("ama average", "method", "mean", "unknown method 'mean'"),
        ("ama average", "decay", 1.0, "decay=1.0 must be "),
        ("ama average", "reset_every", 0, "reset_every=0 must be at least 1"),
        ("ama adapt", "eval_fraction", 1.0, "eval_fraction=1.0 must be at least 0 and below 1"),
        ("dtm disperse", "kmeans.seed", 2**31, "kmeans.seed=2147483648 must be from 0 to 2147483647"),
        ("dtm merge", "aggregation", "dis-min", "unknown aggregation 'dis-min' (did you mean 'dis-mean'?)"),
        ("dtm train", "filter.above", math.nan, "filter.above=nan must be finite"),
        ("dtm train", "tokens.max_length", 0, "tokens.max_length=0 must be at least 1"),
        ("dtm train", "tokens.boundary", "inexact", "unknown tokens.boundary 'inexact'"),
        ("dtm train", "tokens.padding_side", "middle", "unknown tokens.padding_side 'middle'"),
        ("dtm train", "tokens.num_proc", 0, "tokens.num_proc=0 must be at least 1"),
        ("mmpo evaluate", "reference_free", "mean", "unknown reference_free 'mean'"),
        ("mmpo train", "text.truncation", "middle", "unknown text.truncation 'middle'"),
        ("mmpo train", "text.max_length", 0, "text.max_length=0 must be at least 2"),
        ("mmpo best-of-n", "max_prompts", 0, "max_prompts=0 must be at least 1"),
        ("radpo train", "data.sets.NAME.source", "hhh", "unknown data.sets.NAME.source 'hhh' (did you mean 'hh'?)"),
        ("radpo train", "rows.frac_unique_undesirable", 1.5, "rows.frac_unique_undesirable=1.5 must be from 0 to 1"),
        ("radpo train", "rows.incomplete", "pad", "unknown rows.incomplete 'pad'"),
        ("radpo train", "warmup_steps", -1, "warmup_steps=-1 must be at least 0"),
        ("radpo pairs", "classifier.batch_size", 0, "classifier.batch_size=0 must be at least 1"),
    ],
)
def test_what_a_key_does_not_take_is_refused(verb, key, value, message):
    package, name = verb.split(maxsplit=1)
    named = [one.values for one in VERBS if one.values[0] == f"reproalign.{package}" and one.values[1].name == name]
    field = next(fields[key] for fields in (dict(declared(*found)) for found in named) if key in fields)
    with pytest.raises(UserError) as error:
        check_option(field.option, key, value)
    assert str(error.value).startswith(message)


def smallest(package: str, verb: Verb) -> list[str]:
    """Words that set every key which has no default."""
    composed = by_default(package, verb.config_name, verb.schema)
    values: dict[str, Any] = {key: 1.0 for key, field in keys(composed.schema) if field.kind is float}
    values |= {key: [{float: 1.0}.get(field.entry, "x")] for key, field in keys(composed.schema) if field.kind is list}
    missing = [key for key, value in flatten(composed.config).items() if value == "???"]
    chosen = (
        [f"{verb.when}={options(package, verb.when)[0]}"] if verb.when in verb_groups(package, verb.config_name) else []
    )
    return [*chosen, *(as_word(key, values.get(key, "x")) for key in missing)]


@pytest.mark.parametrize("package, verb", VERBS)
def test_a_configuration_that_is_printed_can_be_given_back(package, verb, tmp_path):
    file = tmp_path / "config.yaml"

    def composed(*words: str) -> dict[str, Any]:
        return compose(package, verb.config_name, verb.schema, words, foreign=False).config

    config = composed(*smallest(package, verb))
    file.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    assert composed(f"config={file}") == config
    assert composed(f"config={tmp_path}", "output_dir=another") == {**config, "output_dir": "another"}


def test_the_help_shows_the_values_in_force_their_meaning_and_the_groups(capsys):
    from reproalign.mmpo.cli import main

    assert main(["train", "experiment=smoke", "seed=7", "--help"]) == 0
    printed = capsys.readouterr().out.splitlines()
    config = composed_recipe("smoke")
    assert (
        f"trainer.max_steps = {config['trainer']['max_steps']}  # optimiser steps; -1: by the epochs; at least -1"
        in printed
    )
    assert any(
        line.startswith("seed = 7  # seed of everything that is drawn at random; from 0 to ") for line in printed
    )
    assert any(line.startswith("launch=NAME  # one of: auto, ddp, fsdp") for line in printed)
    assert any(
        line.startswith("model.tokenizer = null  # ") and line.endswith("null: the model's own") for line in printed
    )


def composed_recipe(name: str) -> dict[str, Any]:
    verb = next(verb for verb in importlib.import_module("reproalign.mmpo.cli").APP.verbs if verb.name == "train")
    return compose("reproalign.mmpo", verb.config_name, verb.schema, [f"experiment={name}"], foreign=False).config


# Verbs that train, or start runs that do. What is of a training alone is no key of any other, though the modules that
# these share read it, so that test_every_key_is_read_by_what_carries_the_verb_out cannot see it.
TRAINING = {
    "ama": ("reward", "align sft", "align raft", "align dpo", "align ppo"),
    "common": (),
    "dtm": ("train", "run", "study curves"),
    "mmpo": ("sft", "train", "reward"),
    "more": ("train", "align", "raft"),
    "radpo": ("train",),
}
OF_TRAINING = (
    "lora",
    "dropout",
    "reference.mode",
    "reference.batch_size",
    "resampling",
    "resampling_size",
    "load_from",
)
OF_POLICIES = {  # whose log-probs are computed
    *("ama align sft", "ama align dpo", "ama align ppo", "ama evaluate", "dtm train", "dtm evaluate"),
    *("mmpo train", "mmpo evaluate", "radpo train", "radpo evaluate"),
}


@pytest.mark.parametrize("package, verb", VERBS)
def test_what_is_of_a_training_alone_is_a_key_of_trainings(package, verb):
    short = package.rpartition(".")[2]
    found = [key for key, _ in declared(package, verb) if any(f".{name}." in f".{key}." for name in OF_TRAINING)]
    assert bool(found) == (verb.name in TRAINING[short]), found
    logprobs = [key for key, _ in declared(package, verb) if key.startswith("logprobs.")]
    assert bool(logprobs) == (f"{short} {verb.name}" in OF_POLICIES and verb.when != "suite")


@pytest.mark.parametrize(
    "verb, word, message",
    [
        ("mmpo reward", "logprobs.chunk_size=8", "logprobs.chunk_size is gone: nothing reads it here; leave it out"),
        *(
            (verb, f"{section}.{key}", f"{section}.{key.partition('=')[0]} is gone: nothing is trained here")
            for verbs, section in (
                (("ama sample", "more score", "more perplexity", "common mt-bench", "common evaluate"), "model"),
                (("ama evaluate", "ama frontier", "ama adapt", "ama collect"), "model"),
                (("dtm evaluate", "dtm statistics", "mmpo evaluate", "more evaluate"), "model"),
                (("radpo evaluate", "radpo sample", "radpo pairs"), "model"),
                (("mmpo best-of-n",), "policy"),
                (("mmpo best-of-n",), "reward"),
            )
            for verb in verbs
            for key in ("lora.r=4", "dropout=true")
        ),
        ("mmpo evaluate", "reference.mode=copy", "reference.mode is gone: a reference is loaded as it is here"),
        ("radpo evaluate", "reference.batch_size=2", "reference.batch_size is gone"),
        *(
            (f"{package} evaluate", f"trainer.{key}=1", f"trainer.{key} is gone: nothing is trained here; leave it out")
            for package in ("mmpo", "more", "radpo")
            for key in ("learning_rate", "per_device_eval_batch_size")
        ),
        ("mmpo evaluate", "data.max_rows=2", "unknown key 'data.max_rows' (did you mean 'data.max_eval_rows'?)"),
        ("radpo evaluate", "data.max_rows=2", "unknown key 'data.max_rows' (did you mean 'data.max_eval_rows'?)"),
    ],
)
def test_what_a_verb_does_not_read_is_refused(verb, word, message):
    package, name = verb.split()
    app = importlib.import_module(f"reproalign.{package}.cli").APP
    found = next(one for one in app.verbs if one.name == name)
    with pytest.raises(UserError) as error:
        compose(app.package, found.config_name, found.schema, [*smallest(app.package, found), word], app.renamed)
    assert str(error.value).startswith(message)


@cache
def imported(module: str) -> frozenset[str]:
    """The modules of the project that a module imports, inside functions too; a text ``module:name`` names one."""
    found = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("reproalign."):
            found.add(node.value.partition(":")[0])
        elif isinstance(node, ast.Attribute) and node.attr == "iter_modules":  # it imports what lies beside it
            found |= {f"{module}.{file.stem}" for file in source(module).parent.glob("*.py")}
    return frozenset(name for name in found if name.startswith("reproalign.") and source(name) is not None)


@cache
def source(module: str) -> Path | None:
    """The file of one of the project's modules, without an import."""
    parts = module.split(".")
    base = ROOT / "packages" / parts[1] / "src" / Path(*parts)
    return next((file for file in (base.with_suffix(".py"), base / "__init__.py") if file.is_file()), None)


@cache
def tree(module: str) -> ast.Module:
    found = source(module)
    assert found is not None
    return ast.parse(found.read_text(encoding="utf-8"))


@cache
def read_names(module: str) -> frozenset[str]:
    """Names that a module reads of objects, as attributes or by their texts; a class's own fields are no reading."""
    names = {node.attr for node in ast.walk(tree(module)) if isinstance(node, ast.Attribute)}
    return frozenset(names | set(texts(tree(module))))


def texts(node: ast.AST) -> Iterator[str]:
    """Texts in code that may name a key: those of a declaration speak about it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value.rpartition(".")[2]
    declares = isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("option", "like", "section")
    for child in () if declares else ast.iter_child_nodes(node):
        yield from texts(child)


def reachable(*modules: str) -> set[str]:
    """All modules that these import, directly or not; a command's own list of verbs is no part of a verb."""
    seen, new = set(), set(modules)
    while new:
        seen |= new
        new = {name for module in new for name in imported(module)} - seen
        new = {name for name in new if not name.endswith(".cli") and ".testing" not in name}
    return seen


@pytest.mark.parametrize("package, verb", VERBS)
def test_every_key_is_read_by_what_carries_the_verb_out(package, verb):
    """By name, in any module that the verb's functions reach; the modules that carry every run are among them, but for
    those that merely note it.
    """
    begins = {path.partition(":")[0] for path in (verb.schema, verb.target, verb.check, verb.dry_run) if path}
    modules = reachable(*begins, "reproalign.common.launch.start", "reproalign.common.records.run")
    read = {name for module in modules - NOTING for name in read_names(module)}
    unread = [key for key, _ in declared(package, verb) if key.rpartition(".")[2] not in read]
    assert not unread
