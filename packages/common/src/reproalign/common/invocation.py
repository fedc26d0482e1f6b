"""What was asked for: the command line and the configuration it came to."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Verb:
    """One thing a command does.

    Attributes:
        name: as typed: one word, or two (``study claims``).
        help: one line.
        config_name: primary configuration, in the package's ``configs`` or in the core's.
        schema: ``module:class`` of its structured configuration.
        target: ``module:function(config, invocation)``.
        launchable: may be started in several processes.
        when: a key or group; of several verbs with one name this one is meant if that is among the words.
        positional: the key that a bare word stands for, if one may be given.
        check: ``module:function(config)`` that refuses options before a process is started, for a launchable verb.
        dry_run: ``module:function(config, invocation)`` of ``--dry-run``, if it can say more than that the
            configuration is complete.
    """

    name: str
    help: str
    config_name: str
    schema: str
    target: str
    launchable: bool = False
    when: str = ""
    positional: str = ""
    check: str = ""
    dry_run: str = ""


@dataclass(frozen=True)
class Invocation:
    """One run as the user asked for it.

    Attributes:
        command: the command line, word by word.
        package: the paper package, e.g. ``reproalign.mmpo``.
        verb: e.g. ``train``.
        schema: ``module:class`` of the configuration.
        target: ``module:function`` that carries it out.
        config: the resolved configuration as plain values.
        recipe: the ``experiment=`` it was based on, if any.
        parent: folder of the run that started it, if one did.
    """

    command: list[str]
    package: str
    verb: str
    schema: str
    target: str
    config: dict[str, Any]
    recipe: str | None = None
    parent: str | None = None


def load_object(path: str) -> Any:
    """Import what ``module:name`` stands for."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def structured(schema: str, config: dict[str, Any]) -> Any:
    """Return a plain configuration as an object of its schema class, ``module:class``."""
    from omegaconf import OmegaConf

    from reproalign.common.options.choices import built, specialised

    cls = load_object(schema)
    merged = OmegaConf.merge(OmegaConf.structured(specialised(cls, config)), OmegaConf.create(config))
    return built(cls, OmegaConf.to_object(merged))


def carry_out(invocation: Invocation) -> None:
    """Call the target with the configuration."""
    load_object(invocation.target)(structured(invocation.schema, invocation.config), invocation)
