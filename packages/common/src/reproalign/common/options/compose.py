"""From ``key=value`` words to a checked configuration, with Hydra; every mistake becomes one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from reproalign.common.errors import UserError
from reproalign.common.options.check import check, check_characters
from reproalign.common.options.choices import named, opened, specialised
from reproalign.common.options.explain import explain, explain_missing
from reproalign.common.options.file import KEY, check_keys, given_content, given_file, is_whole, put_file
from reproalign.common.options.foreign import check_foreign
from reproalign.common.options.given import check_key, put_values, split, value_of
from reproalign.common.options.groups import (
    COMMON_CONFIGS,
    any_choice,
    check_choice,
    groups,
    options,
    primary_module,
    verb_groups,
)
from reproalign.common.options.keys import locate
from reproalign.common.options.load import load_object
from reproalign.common.options.renamed import Renamed, new_choice
from reproalign.common.options.unread import check_read
from reproalign.common.options.variants import leave_out_other_variants

# Groups of Hydra's own, for programs that it starts itself; without them composing takes a quarter less.
UNUSED = [
    f"~hydra/{group}"
    for group in ("output", "launcher", "sweeper", "help", "hydra_help", "hydra_logging", "job_logging", "env")
]


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
        schema: ``module:class`` of the structured configuration, which the files' values are put into.
        overrides: words in Hydra's override syntax; ``experiment=NAME`` picks a recipe.
        renamed: keys of the package that changed their names, see :class:`~reproalign.common.command.app.App`.
        foreign: also check what takes an import of transformers: keys that are another library's.
        content: of the file that ``config=`` among the words names: the part of it that is about this run; None: all.

    Raises:
        UserError: for anything wrong in the words or the values.
    """
    composed, recipe, node = _compose(package, config_name, schema, overrides, renamed or {}, content)
    resolved = _resolve(composed, node, recipes="experiment" in verb_groups(package, config_name))
    check_characters(resolved, "")
    check(node, resolved)
    check_read(node, resolved, [split(word)[0] for word in overrides])
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
        key, value = split(word)
        if key in known_groups:
            known = options(package, key)
            if key not in verb_groups(package, config_name):
                instead = f"set its keys, {key}.KEY=VALUE" if locate(node, key) else f"leave {word} out"
                raise UserError(f"{key} is no choice of this verb; {instead} (--help lists what it has)")
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
            content = given_content(overrides)
        if file is not None and is_whole(opened(node), content):
            chosen = [*chosen, *any_choice(package, config_name, chosen)]  # of which nothing is used
        if recipe is None and (missing := any_choice(package, config_name, chosen)):
            name = missing[0].partition("=")[0]
            raise UserError(f"{name} is not set; add {name}=NAME, one of: {', '.join(options(package, name))}")
        config = deepcopy(_compose_files(package, config_name, tuple(chosen)))
        if file is not None:
            config = put_file(config, opened(node), file, content, given, renamed)
        named(node, config, {key: value_of(word) for word, key in words.items()})
        node = specialised(node, config)
        check_keys(node, file, content, renamed)
        composed = OmegaConf.unsafe_merge(deepcopy(_defaults(node)), OmegaConf.create(config))
        checked = [check_key(word, key, node, renamed) for word, key in words.items()]
        put_values(composed, [word for word in checked if word])
        leave_out_other_variants(composed, node, words.values())
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, node)) from error
    return composed, recipe, node


@cache
def _defaults(schema: type) -> Any:
    """Make the defaults of a class, to be copied, which takes half as long."""
    return OmegaConf.structured(schema)


@cache
def _compose_files(package: str, config_name: str, chosen: tuple[str, ...]) -> Any:
    """Compose files by Hydra, once per process: the children of a run, its sweep or its recipe choose the same.

    Without the schema, which Hydra would copy again and again: it is merged with what comes of them, once.
    """
    GlobalHydra.instance().clear()
    with initialize_config_module(config_module=primary_module(package, config_name), version_base="1.3"):
        searched = f"hydra.searchpath=[pkg://{package}.configs,pkg://{COMMON_CONFIGS}]"
        words = [searched, *UNUSED, *chosen]
        return OmegaConf.to_container(hydra_compose(config_name=config_name, overrides=words))


def _resolve(composed: Any, schema: type, *, recipes: bool) -> dict[str, Any]:
    try:
        missing = sorted(OmegaConf.missing_keys(composed))
        if missing:
            raise UserError(explain_missing(missing[0], schema, recipes=recipes))
        container = OmegaConf.to_container(composed, resolve=True, enum_to_str=True)
    except OmegaConfBaseException as error:
        raise UserError(explain(error, schema)) from error
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}
