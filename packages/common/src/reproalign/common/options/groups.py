"""The YAML files that a paper and the core offer: a verb's primary configuration, and groups to choose from."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from reproalign.common.errors import UserError, choose

COMMON_CONFIGS = "reproalign.common.configs"


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


def verb_groups(package: str, config_name: str) -> list[str]:
    """List the groups that a verb's words may choose from: those that its primary configuration names."""
    known = groups(package)
    return [name for name, _ in _defaults(package, config_name) if name in known and options(package, name)]


def any_choice(package: str, config_name: str, words: Sequence[str]) -> list[str]:
    """Return a word for each group that has to be chosen and is not chosen by ``words``."""
    given = {word.partition("=")[0] for word in words}
    missing = [name for name, value in _defaults(package, config_name) if value == "???" and name not in given]
    return [f"{name}={options(package, name)[0]}" for name in missing]


def check_choice(group: str, name: str, known: Sequence[str], *, weights: bool) -> None:
    """Refuse a name that a group does not offer.

    Args:
        group: ``data``, ``model``, ``launch``, ``experiment``.
        name: what was chosen.
        known: what it offers.
        weights: it is about a model, whose folder or Hub id is the key ``name`` of it.

    Raises:
        UserError: with the names, or the key that takes what was given.
    """
    if name.startswith("["):
        raise UserError(f"{group} takes one name; write sweep.{group}={name} to run each")
    if weights and name not in known and re.search("[/:]", name):
        folder = Path(name).expanduser() / "model"
        raise UserError(f"{group}={name} is no configuration; write {group}.name={folder if folder.is_dir() else name}")
    choose("recipe" if group == "experiment" else f"{group} configuration", name, known)


@cache
def _defaults(package: str, config_name: str) -> list[tuple[str, Any]]:
    import yaml

    text = files(primary_module(package, config_name)).joinpath(f"{config_name}.yaml").read_text(encoding="utf-8")
    entries = [entry for entry in yaml.safe_load(text)["defaults"] if isinstance(entry, dict)]
    return [
        (str(name).removeprefix("optional ").partition("@")[0], value)
        for entry in entries
        for name, value in entry.items()
    ]
