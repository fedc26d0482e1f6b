"""From ``key=value`` words to a checked configuration, with Hydra; every mistake becomes one sentence."""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, is_dataclass
from importlib.resources import files
from itertools import accumulate
from typing import Any, get_args, get_origin, get_type_hints

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from reproalign.common.config import BaseRunConfig
from reproalign.common.errors import UserError, choose, did_you_mean
from reproalign.common.invocation import load_object
from reproalign.common.mappings import flatten
from reproalign.common.precision import settle_precision
from reproalign.common.variants import leave_out_other_variants

COMMON_CONFIGS = "reproalign.common.configs"


@dataclass(frozen=True)
class Composed:
    """A resolved configuration as plain values, and the recipe it was based on."""

    config: dict[str, Any]
    recipe: str | None


Bases = dict[tuple[str, ...], Any]


def compose(
    package: str, config_name: str, schema: str, overrides: Sequence[str], bases: Bases | None = None
) -> Composed:
    """Compose the configuration ``config_name`` of ``package`` with ``overrides``.

    Files are composed by Hydra as far as the words choose them (recipe, groups); the values of the other words are put
    into the result, as Hydra does it.

    Args:
        package: the paper package; its ``configs`` module holds its groups, and so does the core's.
        config_name: the verb's primary configuration (see :func:`primary_module`).
        schema: ``module:class`` of the structured configuration, available to Hydra as ``schema: <config_name>``.
        overrides: words in Hydra's override syntax; ``experiment=NAME`` picks a recipe.
        bases: what was composed of the files before, kept for the next call: for many calls that choose the same files,
            while these do not change.

    Raises:
        UserError: for anything wrong in the words or the values.
    """
    node = load_object(schema)
    chosen, words, recipe = [], [], None
    for word in overrides:
        key, value = _split(word)
        if key in groups(package):
            choose("recipe" if key == "experiment" else f"{key} configuration", value, options(package, key))
            recipe = value if key == "experiment" else recipe
            chosen.append(word)
        else:
            words.append(_check_key(word, key, node))
    choice = (package, config_name, schema, *chosen)
    try:
        composed = (bases or {}).get(choice) or _compose_files(package, config_name, node, chosen)
        if bases is not None:
            composed = deepcopy(bases.setdefault(choice, composed))
        _put_values(composed, words)
        leave_out_other_variants(composed, node, [_split(word)[0] for word in words])
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_explain(error)) from error
    resolved = _resolve(composed)
    return Composed(settle_precision(resolved) if issubclass(node, BaseRunConfig) else resolved, recipe)


def _compose_files(package: str, config_name: str, schema: type, chosen: Sequence[str]) -> Any:
    ConfigStore.instance().store(group="schema", name=config_name, node=schema, package="_global_")
    GlobalHydra.instance().clear()
    with initialize_config_module(config_module=primary_module(package, config_name), version_base="1.3"):
        searched = f"hydra.searchpath=[pkg://{package}.configs,pkg://{COMMON_CONFIGS}]"
        return hydra_compose(config_name=config_name, overrides=[searched, *chosen])


def _put_values(composed: Any, words: Sequence[str]) -> None:
    """Give keys the values of words; a null section that is free in its keys is opened, since nothing is in null."""
    for override in OverridesParser.create().parse_overrides(list(words)):
        key, value = override.key_or_group, override.value()
        if override.is_sweep_override():
            raise UserError(
                f"'{key}' is given several values; write {key}=[A,B] for a list, or quote a text with commas"
            )
        if not override.is_force_add():
            OmegaConf.update(composed, key, value, merge=True)
            continue
        own = [key] if isinstance(value, dict) else []
        for section in [*accumulate(key.split(".")[:-1], "{}.{}".format), *own]:
            if OmegaConf.select(composed, section, default={}) is None:
                OmegaConf.update(composed, section, {}, merge=False, force_add=True)
        OmegaConf.update(composed, key, value, merge=True, force_add=True)


def primary_module(package: str, config_name: str) -> str:
    """Return the module that holds ``config_name``: the package's ``configs``, or the core's for a ready-made verb."""
    own = files(f"{package}.configs").joinpath(f"{config_name}.yaml")
    return f"{package}.configs" if own.is_file() else COMMON_CONFIGS


def groups(package: str) -> list[str]:
    """List the groups of configurations that ``package`` has: its own folders and the core's."""
    folders = [entry for module in (f"{package}.configs", COMMON_CONFIGS) for entry in files(module).iterdir()]
    return sorted({folder.name for folder in folders if folder.is_dir() and not folder.name.startswith("_")})


def options(package: str, group: str) -> list[str]:
    """List the names that a group (``data``, ``model``, ``launch``, ``experiment``) offers to ``package``.

    A file whose name begins with an underscore is what others of its group build on, and is no choice.
    """
    names = set()
    for module in (f"{package}.configs", COMMON_CONFIGS):
        folder = files(module).joinpath(group)
        if folder.is_dir():
            names |= {entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")}
    return sorted(name for name in names if not name.startswith("_"))


def as_word(key: str, value: Any) -> str:
    """Return the word that gives ``key`` a plain value, quoted for Hydra's grammar: ``loss.beta=0.1``, ``path='a b'``.

    Args:
        key: with dots.
        value: null, a number, a truth value, text, or a list or mapping of such.
    """
    return f"{key}={_literal(value)}"


def section_words(section: str, values: Any) -> list[str]:
    """Return the words that give a section's keys what differs from the defaults of its class.

    Args:
        section: e.g. ``model``.
        values: an object of a structured configuration class, all of whose fields have defaults.
    """
    default = flatten(asdict(type(values)()))
    given = flatten(asdict(values))
    return [as_word(f"{section}.{key}", value) for key, value in given.items() if value != default.get(key)]


def _literal(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_literal, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{name}:{_literal(entry)}" for name, entry in value.items()) + "}"
    if isinstance(value, str):
        if re.fullmatch(r"[A-Za-z_./][\w./:-]*", value, re.ASCII) and value.lower() not in (
            "null",
            "true",
            "false",
            "nan",
            "inf",
        ):
            return value
        text = value.replace("${", "\\${")  # no reference to another key
        text = re.sub(r"(\\*)'", r"\1\1\\'", text)  # backslashes count before a quote alone
        return "'" + re.sub(r"(\\+)$", r"\1\1", text) + "'"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def _split(word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    key = key.lstrip("+")
    if not equals or not re.fullmatch(r"[\w./@-]+", key):
        raise UserError(f"'{word}' is not of the form key=value")
    return key, value


def _check_key(word: str, key: str, schema: type) -> str:
    """Check that ``key`` exists; words for free-form sections get Hydra's ``++`` (add or replace)."""
    cls: Any = schema
    parts = key.split(".")
    for depth, part in enumerate(parts, 1):
        hints = get_type_hints(cls) if is_dataclass(cls) else {}
        if part not in hints:
            hint = did_you_mean(key, known_keys(schema))
            raise UserError(f"unknown key '{key}'{hint}; 'VERB --help' lists the keys")
        cls = hints[part]
        if any(get_origin(choice) is dict for choice in (cls, *get_args(cls))):
            if not _is_understood(f"++{key}=1"):
                section, inner, value = ".".join(parts[:depth]), ".".join(parts[depth:]), word.partition("=")[2]
                raise UserError(
                    f"'{key}' cannot be a key by itself; write it in braces: '{section}={{{inner}: {value}}}'"
                )
            return f"++{word.lstrip('+')}"
    texts = cls is Any or (str in (cls, *get_args(cls)) and get_origin(cls) is not list)
    if texts and not _is_understood(word):
        return as_word(key, word.partition("=")[2])  # a path beyond Hydra's grammar, or a list like 1,1,1
    return word


def _is_understood(word: str) -> bool:
    try:
        return not OverridesParser.create().parse_override(word).is_sweep_override()
    except HydraException:
        return False


def known_keys(schema: type, prefix: str = "") -> list[str]:
    """List the keys of a structured configuration, nested ones with dots."""
    keys = []
    for name, hint in get_type_hints(schema).items():
        nested = isinstance(hint, type) and is_dataclass(hint)
        keys += known_keys(hint, f"{prefix}{name}.") if nested else [f"{prefix}{name}"]
    return keys


def _resolve(composed: Any) -> dict[str, Any]:
    try:
        missing = sorted(OmegaConf.missing_keys(composed))
        if missing:
            raise UserError(f"{missing[0]} is not set; add {missing[0]}=VALUE to the command or choose a recipe")
        container = OmegaConf.to_container(composed, resolve=True, enum_to_str=True)
    except OmegaConfBaseException as error:
        raise UserError(_explain(error)) from error
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def _explain(error: BaseException) -> str:
    """One sentence from Hydra's or OmegaConf's many lines, keeping the full key if one is named."""
    while error.__cause__ is not None and isinstance(error.__cause__, HydraException | OmegaConfBaseException):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    key = next((line.removeprefix("full_key:").strip() for line in lines if line.startswith("full_key:")), None)
    first = (lines or [type(error).__name__])[0]
    if key and "is not a ListConfig, list or tuple" in first:
        return f"{key} is a list; write {key}=[A] or {key}=[A,B]"
    if key and first.startswith("Cannot assign") and "to Dict[" in first:
        return f"{key} is a mapping; write {key}.NAME=VALUE"
    return f"{key}: {first}" if key and key not in first else first
