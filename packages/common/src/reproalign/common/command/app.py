"""The command line of a paper package: verbs, recipes, help, and errors that fit on one line.

A package declares an :class:`App` and calls :func:`run`. Nothing heavy is imported before it is needed, so that
``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import NoReturn

from reproalign.common.command.guarded import guarded
from reproalign.common.command.help import FLAGS, print_help, print_verb_help
from reproalign.common.console import QUIET
from reproalign.common.errors import UserError, choose
from reproalign.common.invocation import Invocation, Verb, carry_out
from reproalign.common.options.load import load_object

SWEPT = ("seeds=", "sweep.")  # words that ask for several runs


@dataclass(frozen=True)
class App:
    """One paper's command.

    Attributes:
        command: as typed, e.g. ``mmpo``.
        package: import name, e.g. ``reproalign.mmpo``.
        distribution: e.g. ``reproalign-mmpo``.
        title: one line on what it is.
        verbs: what it does.
        more: other subcommands, name -> (help, ``module:function(argv) -> int``).
        renamed: keys that changed their names, see :data:`reproalign.common.options.renamed.RENAMED`.
    """

    command: str
    package: str
    distribution: str
    title: str
    verbs: tuple[Verb, ...]
    more: tuple[tuple[str, str, str], ...] = ()
    renamed: Mapping[str, str | Sequence[str]] = field(default_factory=dict)


class WordParser(argparse.ArgumentParser):
    """Mistakes in its words become one sentence, as everywhere else."""

    def error(self, message: str) -> NoReturn:
        """Raise a :class:`UserError`."""
        raise UserError(f"{message}; see {self.prog} --help")


def run(app: App, argv: Sequence[str] | None = None) -> int:
    """Carry out a command line and return its exit code.

    0 done, 1 failed, 2 the user's mistake or what only the user can repair, 128 + N ended by signal N (130 by Ctrl-C).
    """
    words = list(sys.argv[1:] if argv is None else argv)
    return guarded(app.command, lambda: _dispatch(app, words), show_traceback="--traceback" in words)


def _dispatch(app: App, words: list[str]) -> int:
    words = ["--help" if word == "-h" else word for word in words]
    flags = {word for word in words if word in FLAGS}
    words = [word for word in words if word not in flags]
    if "--quiet" in flags:
        os.environ[QUIET] = "1"  # which the processes that are started inherit
    if "--version" in flags:
        print(f"{app.command} {_version(app.distribution)}")
        return 0
    if not words or (words[0] == "help"):
        print_help(app)
        return 0 if "--help" in flags or words else 2
    if "--help" in flags and len(words) == 1 and kinds_of(app, words[0]):
        print_help(app)
        return 0
    name, rest = split_verb(app, words)
    if name == "recipes" and name in known_verbs(app):
        from reproalign.common.command.recipes import recipes_command

        return recipes_command(app.command, app.package, rest)
    if name == "completion":
        from reproalign.common.command.completion import completion

        return completion(app, rest)
    for other, _, target in app.more:
        if name == other:
            return int(load_object(target)([*rest, *(["--help"] if "--help" in flags else [])]))
    verb = find_verb(app, name, rest)
    rest = [_with_key(word, verb.positional) for word in rest]
    if "--help" in flags:
        print_verb_help(app, verb, rest)
        return 0
    unknown = next((word for word in rest if word.startswith("-")), None)
    if unknown:
        raise UserError(
            f"unknown flag '{unknown}'; flags are {', '.join(FLAGS)}, everything else is key=value; "
            "several runs are seeds=[1,2,3] and sweep.KEY=[A,B]"
        )
    return _run_verb(app, verb, rest, flags)


def kinds_of(app: App, name: str) -> list[str]:
    """List the second words of verbs with two, such as ``claims`` of ``study claims``."""
    return [verb.name.partition(" ")[2] for verb in app.verbs if verb.name.startswith(f"{name} ")]


def split_verb(app: App, words: Sequence[str]) -> tuple[str, list[str]]:
    """Return the verb, of one word or two, and the words after it."""
    name, rest = words[0], list(words[1:])
    kinds = kinds_of(app, name)
    if not kinds:
        return name, rest
    if not rest or "=" in rest[0]:
        raise UserError(f"'{app.command} {name}' needs a second word; choose one of: {', '.join(kinds)}")
    return f"{name} {choose(name, rest[0], kinds)}", rest[1:]


def known_verbs(app: App) -> list[str]:
    """List what may follow the command's name."""
    from reproalign.common.options.groups import options

    verbs = dict.fromkeys(verb.name for verb in app.verbs)  # some share a name
    recipes = ["recipes"] if options(app.package, "experiment") else []
    return [*verbs, *recipes, *(other for other, _, _ in app.more), "completion"]


def find_verb(app: App, name: str, words: Sequence[str]) -> Verb:
    """Return the verb called ``name``; of several the one whose ``when`` is a key among ``words``, or of their recipe.

    Raises:
        UserError: for a name that the command does not know.
    """
    from reproalign.common.command.recipes import recipe_keys
    from reproalign.common.options.file import given_content, is_sweep

    choose("verb", name, known_verbs(app))
    keys = {word.partition("=")[0].lstrip("+").partition(".")[0] for word in words} | recipe_keys(app.package, words)
    content = given_content(words)
    keys |= set(content["run"] if is_sweep(content) else content)
    named = [verb for verb in app.verbs if verb.name == name]
    meant = [verb for verb in named if verb.when in keys] or [verb for verb in named if not verb.when] or named
    return meant[0]


def check_namesakes(app: App, verb: Verb, words: Sequence[str]) -> None:
    """Refuse a key that another verb of the same name has and this one has not.

    Raises:
        UserError: naming the key that tells the two apart.
    """
    from reproalign.common.options.keys import locate

    namesakes = [other for other in app.verbs if other.name == verb.name and other is not verb]
    for word in words if namesakes else ():
        key = word.partition("=")[0].lstrip("+").removeprefix("sweep.")
        if locate(load_object(verb.schema), key):
            continue
        for other in namesakes:
            if not locate(load_object(other.schema), key):
                continue
            if not verb.when:
                raise UserError(f"{key} goes with {other.when}=…; give {other.when} too, or leave {key} out")
            raise UserError(f"{key} does not go with {verb.when}=…; leave one of the two out")


def _with_key(word: str, positional: str) -> str:
    """Give a bare word, such as a file, the key that it stands for."""
    if not positional or "=" in word or word.startswith("-"):
        return word
    from reproalign.common.options.words import as_word

    return as_word(positional, word)


def _run_verb(app: App, verb: Verb, overrides: list[str], flags: set[str]) -> int:
    from reproalign.common.command.recipes import check_verb
    from reproalign.common.options.compose import compose
    from reproalign.common.options.file import given_content, is_sweep

    check_verb(app.command, app.package, verb.name, overrides)
    check_namesakes(app, verb, overrides)
    if any(word.startswith(SWEPT) for word in overrides) or is_sweep(given_content(overrides)):
        return _run_sweep(app, verb, overrides, flags)
    shown = "--cfg" in flags
    composed = compose(app.package, verb.config_name, verb.schema, overrides, renamed=app.renamed, foreign=not shown)
    invocation = Invocation(
        command=[app.command, *verb.name.split(), *overrides],
        package=app.package,
        verb=verb.name,
        schema=verb.schema,
        target=verb.target,
        config=composed.config,
        recipe=composed.recipe,
    )
    if shown:
        return _print_config(invocation)
    if "--show-tokens" in flags:
        from reproalign.common.command.tokens import show_tokens

        show_tokens(invocation)
        return 0
    if "--dry-run" in flags:
        from reproalign.common.command.dry_run import dry_run

        return dry_run(invocation, verb)
    if verb.launchable:
        from reproalign.common.launch.start import start

        return start(invocation, dry_run=False, check_options=verb.check)
    carry_out(invocation)
    return 0


def _run_sweep(app: App, verb: Verb, words: list[str], flags: set[str]) -> int:
    from reproalign.common.command.sweep import sweep_invocation

    if "--show-tokens" in flags:
        raise UserError("--show-tokens shows the rows of one run; remove seeds and sweep.*")
    invocation = sweep_invocation(app.command, app.package, verb, words, app.renamed)
    if "--cfg" in flags:
        return _print_config(invocation)
    if "--dry-run" in flags:
        from reproalign.common.command.dry_run import dry_run

        planned = "reproalign.common.verbs.sweep:show_plan"
        return dry_run(invocation, Verb(verb.name, "", "", invocation.schema, invocation.target, dry_run=planned))
    carry_out(invocation)
    return 0


def _print_config(invocation: Invocation) -> int:
    import yaml

    print(f"# {shlex.join(invocation.command)}")
    print(yaml.safe_dump(invocation.config, sort_keys=False, allow_unicode=True), end="")
    return 0


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "(not installed)"
