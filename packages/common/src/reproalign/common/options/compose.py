"""From ``key=value`` words to a checked configuration, with Hydra; every mistake becomes one sentence."""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from reproalign.common.errors import UserError, did_you_mean
from reproalign.common.options.check import check, check_characters
from reproalign.common.options.choices import chosen_sections, named, opened, specialised
from reproalign.common.options.file import KEY, check_keys, given_file, is_whole, put_file, read_file
from reproalign.common.options.foreign import check_foreign
from reproalign.common.options.groups import COMMON_CONFIGS, any_choice, check_choice, groups, options, primary_module
from reproalign.common.options.keys import declared_fields, fields, is_section, known_keys, locate
from reproalign.common.options.load import load_object
from reproalign.common.options.renamed import Renamed, new_choice, new_name
from reproalign.common.options.variants import leave_out_other_variants
from reproalign.common.options.words import as_word

_ONE_SEED = "seed is one number; write seeds=[1,2] to run each"


@dataclass(frozen=True)
class Composed:
    """A resolved configuration as plain values, the recipe it was based on, and the class that says what its keys are.

    The class is the verb's, with those sections that are chosen by their names as they were chosen.
    """

    config: dict[str, Any]
    recipe: str | None
    schema: type


def compose(
    package: str,
    config_name: str,
    schema: str,
    overrides: Sequence[str],
    renamed: Renamed | None = None,
    *,
    foreign: bool = True,
    content: dict[str, Any] | None = None,
) -> Composed:
    """Compose the configuration ``config_name`` of ``package`` with ``overrides``.

    Files are composed by Hydra as far as the words choose them (recipe, groups); the values of the other words are put
    into the result, as Hydra does it.

    Args:
        package: the paper package; its ``configs`` module holds its groups, and so does the core's.
        config_name: the verb's primary configuration (see :func:`~reproalign.common.options.groups.primary_module`).
        schema: ``module:class`` of the structured configuration, available to Hydra as ``schema: <config_name>``.
        overrides: words in Hydra's override syntax; ``experiment=NAME`` picks a recipe.
        renamed: keys of the package that changed their names, see :class:`~reproalign.common.command.app.App`.
        foreign: also check what takes an import of transformers: keys that are another library's.
        content: of the file that ``config=`` among the words names: the part of it that is about this run; None: all.

    Raises:
        UserError: for anything wrong in the words or the values.
    """
    composed, recipe, node = _compose(package, config_name, schema, overrides, renamed or {}, content)
    resolved = _resolve(composed, node)
    check_characters(resolved, "")
    check(node, resolved)
    if foreign:
        check_foreign(node, resolved)
    settle = getattr(node, "settle", None)
    return Composed(settle(resolved) if settle else resolved, recipe, node)


def in_force(package: str, config_name: str, schema: str, overrides: Sequence[str]) -> Composed:
    """Compose likewise, without a check of the values; what is not set yet is ``???``.

    Before a group that has to be chosen is chosen, the values are those of the class.

    Raises:
        UserError: for a word that cannot be understood.
    """
    if any_choice(package, config_name, overrides):
        node = load_object(schema)
        return Composed(OmegaConf.to_container(OmegaConf.structured(node)), None, node)  # type: ignore[arg-type]
    composed, recipe, node = _compose(package, config_name, schema, overrides, {})
    container: dict[str, Any] = OmegaConf.to_container(composed, resolve=True)  # type: ignore[assignment]
    return Composed(container, recipe, node)


def _compose(
    package: str,
    config_name: str,
    schema: str,
    overrides: Sequence[str],
    renamed: Renamed,
    content: dict[str, Any] | None = None,
) -> tuple[Any, str | None, type]:
    node = load_object(schema)
    file = given_file(overrides)
    chosen, words, recipe, known_groups = [], {}, None, groups(package)
    for word in overrides:
        key, value = _split(word)
        if key in known_groups:
            known = options(package, key)
            if value not in known and (sentence := new_choice(key, value, renamed)):
                raise UserError(sentence)
            check_choice(key, value, known, weights=locate(node, f"{key}.revision") is not None)
            recipe = value if key == "experiment" else recipe
            chosen.append(word)
        elif key != KEY or file is None:
            words[word] = key
    given = [word.partition("=")[0] for word in chosen]
    try:
        if content is None:
            content = read_file(file) if file is not None else {}
        if file is not None and is_whole(opened(node), content):
            chosen = [*chosen, *any_choice(package, config_name, chosen)]  # of which nothing is used
        composed = deepcopy(_compose_files(package, config_name, opened(node), tuple(chosen)))
        if file is not None:
            composed = put_file(composed, opened(node), file, content, given, renamed)
        if chosen_sections(node):
            config: Any = OmegaConf.to_container(composed, resolve=False)
            named(node, config, {key: _value(word) for word, key in words.items()})
            node = specialised(node, config)
            check_keys(node, file, content, renamed)
            composed = OmegaConf.unsafe_merge(OmegaConf.structured(node), OmegaConf.create(config))
        checked = [_check_key(word, key, node, renamed) for word, key in words.items()]
        _put_values(composed, [word for word in checked if word])
        leave_out_other_variants(composed, node, words.values())
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_explain(error)) from error
    return composed, recipe, node


@cache
def _compose_files(package: str, config_name: str, schema: type, chosen: tuple[str, ...]) -> Any:
    """Compose files by Hydra, once per process: the children of a run, its sweep or its recipe choose the same."""
    ConfigStore.instance().store(group="schema", name=config_name, node=schema, package="_global_")
    GlobalHydra.instance().clear()
    with initialize_config_module(config_module=primary_module(package, config_name), version_base="1.3"):
        searched = f"hydra.searchpath=[pkg://{package}.configs,pkg://{COMMON_CONFIGS}]"
        return hydra_compose(config_name=config_name, overrides=[searched, *chosen])


def _put_values(composed: Any, words: Sequence[str]) -> None:
    """Give keys the values of words."""
    for override in [_parsed(word) for word in words]:
        key, value = override.key_or_group, override.value()
        if override.is_sweep_override():
            if key == "seed":
                raise UserError(_ONE_SEED)
            raise UserError(
                f"'{key}' is given several values; write sweep.{key}=[A,B] to run each, {key}=[A,B] for a list, or "
                "quote a text with commas"
            )
        for part in reversed(key.split(".")):
            value = {part: value}
        with flag_override(composed, "struct", False):  # mappings take new keys; those of sections were checked
            composed.merge_with(value)


def _split(word: str) -> tuple[str, str]:
    key, equals, value = word.partition("=")
    key = key.lstrip("+")
    if not equals or not re.fullmatch(r"[\w./@-]+", key):
        raise UserError(f"'{word}' is not of the form key=value")
    return key, value


def _check_key(word: str, key: str, schema: type, renamed: Renamed) -> str:
    """Check that ``key`` exists, and quote a text beyond Hydra's grammar."""
    found = locate(schema, key)
    if found is None:
        known = known_keys(schema)
        sentence = new_name(key, word.partition("=")[2], known, renamed)
        ends = [full for full in [*known, *declared_fields(schema)] if full.endswith(f".{key}")]
        hint = f" (did you mean '{ends[0]}'?)" if len(ends) == 1 else did_you_mean(key, known)
        raise UserError(sentence or f"unknown key '{key}'{hint}; --help behind the verb lists the keys")
    field, mapping = found
    if is_section(field.kind) and locate(schema, f"{key}.name"):
        return ""  # it names the section's class, which the schema already has
    value = word.partition("=")[2]
    if mapping and is_section(field.entry) and key.count(".") == mapping.count(".") + 1 and value[:1] not in ("{", ""):
        entries = ", ".join(entry.name for entry in fields(field.entry))
        raise UserError(f"{key} is a section; write {key}.KEY={value}, where KEY is one of: {entries}")
    if mapping and not _is_understood(f"{key}=1"):
        inner = key.removeprefix(f"{mapping}.")
        raise UserError(f"'{key}' cannot be a key by itself; write it in braces: '{mapping}={{{inner}: {value}}}'")
    if field.kind in (str, Any) and not _is_understood(word):
        return as_word(key, value)  # a path beyond Hydra's grammar, or a list like 1,1,1
    return word.lstrip("+")


def _value(word: str) -> str:
    """Return a word's value as text, without the quotes that Hydra's grammar allows."""
    quoted = _is_understood(word) and word.partition("=")[2][:1] in "'\""
    return str(_parsed(word).value()) if quoted else word.partition("=")[2]


@cache
def _parsed(word: str) -> Override:
    """Parse a word, once per process: it is asked for several times, and the children of a run are given most of it."""
    (override,) = OverridesParser.create().parse_overrides([word])
    return override


def _is_understood(word: str) -> bool:
    try:
        return not _parsed(word).is_sweep_override()
    except HydraException:
        return False


def _resolve(composed: Any, schema: type) -> dict[str, Any]:
    try:
        missing = sorted(OmegaConf.missing_keys(composed))
        if missing:
            found = locate(schema, missing[0])
            null = found[0].option.null if found and found[0].option else ""
            meaning = f" (null: {null})" if null else ""
            raise UserError(
                f"{missing[0]} is not set; add {missing[0]}=VALUE{meaning} to the command or choose a recipe"
            )
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
    if key and "ListConfig" in first:
        return _ONE_SEED if key == "seed" else f"{key} takes one value; write sweep.{key}=[A,B] to run each"
    if key and first.startswith("Cannot assign") and "to Dict[" in first:
        return f"{key} is a mapping; write {key}.NAME=VALUE"
    return f"{key}: {first}" if key and key not in first else first
