"""What was asked for: the command line and the configuration it came to."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from reproalign.common.errors import UserError
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
            configuration is complete, the folder free and the models there.
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
    """Return a composed configuration as an object of its schema class, ``module:class``."""
    from reproalign.common.options.choices import built

    return built(load_object(schema), deepcopy(config))


def read_back(schema: str, config: dict[str, Any]) -> Any:
    """Return a configuration out of a file or a record, which another version may have written, as such an object.

    Raises:
        UserError: for a key that the class has not, a value that it does not allow, or one that is missing.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from reproalign.common.options.check import check
    from reproalign.common.options.choices import built, specialised
    from reproalign.common.options.explain import explain

    cls = load_object(schema)
    try:
        special = specialised(cls, config)
    except KeyError as error:
        raise UserError(f"there is no {error}, by which a section is chosen") from error
    try:
        merged = OmegaConf.unsafe_merge(OmegaConf.structured(special), OmegaConf.create(config))
        values: Any = OmegaConf.to_container(merged, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(explain(error, special)) from error
    check(special, values)
    return built(cls, values)


def carry_out(invocation: Invocation) -> None:
    """Call the target with the configuration."""
    load_object(invocation.target)(structured(invocation.schema, invocation.config), invocation)
