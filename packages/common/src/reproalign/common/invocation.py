"""What was asked for: the command line and the configuration it came to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reproalign.common.options.load import load_object


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
        previewed: its target calls :func:`reproalign.common.training.preview.preview` once its rows are ready, so that
            a dry run can say how it would train on them.
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
    previewed: bool = False


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
        preview: of a dry run as far as the rows, the launch that it is a preview of; None: it is carried out.
    """

    command: list[str]
    package: str
    verb: str
    schema: str
    target: str
    config: dict[str, Any]
    recipe: str | None = None
    parent: str | None = None
    preview: dict[str, Any] | None = None


def structured(schema: str, config: dict[str, Any]) -> Any:
    """Return a plain configuration as an object of its schema class, ``module:class``.

    Raises:
        UserError: for a value that the class does not allow, as one of a record of an earlier version may be.
    """
    from omegaconf import OmegaConf

    from reproalign.common.options.check import check
    from reproalign.common.options.choices import built, specialised

    cls = load_object(schema)
    special = specialised(cls, config)
    check(special, config)
    merged = OmegaConf.unsafe_merge(OmegaConf.structured(special), OmegaConf.create(config))
    return built(cls, OmegaConf.to_object(merged))


def carry_out(invocation: Invocation) -> None:
    """Call the target with the configuration."""
    load_object(invocation.target)(structured(invocation.schema, invocation.config), invocation)
