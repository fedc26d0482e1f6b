"""The command line of a paper package: verbs, recipes, help, and errors that fit on one line.

A package declares an :class:`App` and calls :func:`run`. Nothing heavy is imported before it is needed, so that
``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import sys
import textwrap
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from typing import NoReturn

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from reproalign.common.errors import ReportedError, UserError, choose
from reproalign.common.invocation import Invocation, Verb, carry_out, load_object

FLAGS = {
    "--help": "show this help, or with a verb its keys",
    "--version": "show the version",
    "--cfg": "print the resolved configuration and stop",
    "--dry-run": "check everything that can be checked without a model, print what would be run, and stop",
    "--traceback": "show Python's traceback with an error",
}


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
    renamed: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)


class WordParser(argparse.ArgumentParser):
    """Mistakes in its words become one sentence, as everywhere else."""

    def error(self, message: str) -> NoReturn:
        """Raise a :class:`UserError`."""
        raise UserError(f"{message}; see {self.prog} --help")


def run(app: App, argv: Sequence[str] | None = None) -> int:
    """Carry out a command line and return its exit code: 0 done, 1 failed, 2 the user's mistake, 130 interrupted."""
    words = list(sys.argv[1:] if argv is None else argv)
    return guarded(app.command, lambda: _dispatch(app, words), show_traceback="--traceback" in words)


def guarded(command: str, action: object, *, show_traceback: bool = False) -> int:
    """Call ``action`` (no arguments, returns an exit code); print a user's mistake on one line."""
    assert callable(action)
    try:
        return int(action())
    except UserError as error:
        if show_traceback:
            traceback.print_exc()
        print(f"{command}: error: {error}", file=sys.stderr)
        return 2
    except ReportedError as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{command}: interrupted; the same command resumes an unfinished run", file=sys.stderr)
        return 130


def _dispatch(app: App, words: list[str]) -> int:
    words = ["--help" if word == "-h" else word for word in words]
    flags = {word for word in words if word in FLAGS}
    words = [word for word in words if word not in flags]
    if "--version" in flags:
        print(f"{app.command} {_version(app.distribution)}")
        return 0
    if not words or (words[0] == "help"):
        _print_help(app)
        return 0 if "--help" in flags or words else 2
    if "--help" in flags and len(words) == 1 and _kinds(app, words[0]):
        _print_help(app)
        return 0
    name, rest = _whole_name(app, words)
    if name == "recipes":
        from reproalign.common.command.recipes import recipes_command

        return recipes_command(app.command, app.package, rest, console=Console())
    for other, _, target in app.more:
        if name == other:
            return int(load_object(target)([*rest, *(["--help"] if "--help" in flags else [])]))
    verb = find_verb(app, name, rest)
    rest = [_with_key(word, verb.positional) for word in rest]
    if "--help" in flags:
        _print_verb_help(app, verb)
        return 0
    unknown = next((word for word in rest if word.startswith("-")), None)
    if unknown:
        raise UserError(f"unknown flag '{unknown}'; flags are {', '.join(FLAGS)}, everything else is key=value")
    return _run_verb(app, verb, rest, flags)


def _kinds(app: App, name: str) -> list[str]:
    """List the second words of verbs with two, such as ``claims`` of ``study claims``."""
    return [verb.name.partition(" ")[2] for verb in app.verbs if verb.name.startswith(f"{name} ")]


def _whole_name(app: App, words: Sequence[str]) -> tuple[str, list[str]]:
    """Return the verb, of one word or two, and the words after it."""
    name, rest = words[0], list(words[1:])
    kinds = _kinds(app, name)
    if not kinds:
        return name, rest
    if not rest or "=" in rest[0]:
        raise UserError(f"'{app.command} {name}' needs a second word; choose one of: {', '.join(kinds)}")
    return f"{name} {choose(name, rest[0], kinds)}", rest[1:]


def find_verb(app: App, name: str, words: Sequence[str]) -> Verb:
    """Return the verb called ``name``; of several the one whose ``when`` is a key among ``words``, or of their recipe.

    Raises:
        UserError: for a name that the command does not know.
    """
    from reproalign.common.command.recipes import read_headers, recipe_keys

    recipes = ["recipes"] if read_headers(app.package) else []
    choose("verb", name, [*(verb.name for verb in app.verbs), *recipes, *(other for other, _, _ in app.more)])
    keys = {word.partition("=")[0].lstrip("+").partition(".")[0] for word in words} | recipe_keys(app.package, words)
    named = [verb for verb in app.verbs if verb.name == name]
    meant = [verb for verb in named if verb.when in keys] or [verb for verb in named if not verb.when] or named
    return meant[0]


def _with_key(word: str, positional: str) -> str:
    """Give a bare word, such as a file, the key that it stands for."""
    if not positional or "=" in word or word.startswith("-"):
        return word
    from reproalign.common.options.words import as_word

    return as_word(positional, word)


def _run_verb(app: App, verb: Verb, overrides: list[str], flags: set[str]) -> int:
    from reproalign.common.command.recipes import check_verb
    from reproalign.common.options.compose import compose

    check_verb(app.command, app.package, verb.name, overrides)
    composed = compose(app.package, verb.config_name, verb.schema, overrides, renamed=app.renamed)
    if "--cfg" in flags:
        import yaml

        print(yaml.safe_dump(composed.config, sort_keys=False, allow_unicode=True), end="")
        return 0
    invocation = Invocation(
        command=[app.command, *verb.name.split(), *overrides],
        package=app.package,
        verb=verb.name,
        schema=verb.schema,
        target=verb.target,
        config=composed.config,
        recipe=composed.recipe,
    )
    if "--dry-run" in flags and verb.dry_run:
        carry_out(replace(invocation, target=verb.dry_run))
        return 0
    if verb.launchable:
        from reproalign.common.launch import start

        return start(invocation, dry_run="--dry-run" in flags, check_options=verb.check)
    if "--dry-run" in flags:
        print(f"{app.command} {verb.name}: the configuration is complete")
        return 0
    carry_out(invocation)
    return 0


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "(not installed)"


def _print_help(app: App) -> None:
    from reproalign.common.command.recipes import read_headers

    console = Console(highlight=False)
    console.print(f"[bold]{app.command}[/]: {app.title}\n")
    recipes = read_headers(app.package)
    usage = "VERB \\[experiment=RECIPE] \\[key=value …]" if recipes else "VERB …"
    console.print(f"Usage: {app.command} {usage}\n", style="cyan")
    verbs = Table("verb", "what it does", box=None, pad_edge=False, header_style="bold")
    for verb in app.verbs:
        verbs.add_row(f"{verb.name} {verb.when}=…" if verb.when else verb.name, verb.help)
    for name, text, _ in app.more:
        verbs.add_row(name, text)
    if recipes:
        verbs.add_row("recipes", "list the published recipes, or show one with its command and numbers")
    console.print(verbs)
    if recipes:
        named = Column("\nrecipe", no_wrap=True, min_width=max(map(len, recipes)))  # a name is there to be copied
        table = Table(named, "\nverb", "\nwhat it is", box=None, pad_edge=False, header_style="bold")
        for name, header in recipes.items():
            table.add_row(name, header.get("verb", ""), header.get("title", ""))
        console.print(table)
    flags = Table("\nflag", "\n", box=None, pad_edge=False, header_style="bold")
    for flag, text in FLAGS.items():
        flags.add_row(flag, text)
    console.print(flags)
    read_on = f"`{app.command} recipes NAME`, `{app.command} VERB --help`, and the README and ERRATA of packages/"
    where = f"{read_on}{app.package.rpartition('.')[2]}" if recipes else f"`{app.command} VERB --help`, and docs/"
    console.print(f"\nRead on: {where}.")


def _print_verb_help(app: App, verb: Verb) -> None:
    console = Console(highlight=False)
    console.print(f"[bold]{app.command} {verb.name}[/]: {verb.help}\n")
    from reproalign.common.options.compose import options, primary_module

    text = files(primary_module(app.package, verb.config_name)).joinpath(f"{verb.config_name}.yaml").read_text("utf-8")
    recipe = "experiment" in text and bool(options(app.package, "experiment"))
    words = [verb.positional.upper()] if verb.positional else []
    words += [f"{verb.when}=NAME"] if verb.when else []
    words += ["[experiment=RECIPE]"] if recipe else []
    usage = " ".join([app.command, verb.name, *words, "[key=value …]"])
    console.print(f"Usage: {escape(usage)}\n", style="cyan")
    if verb.when and options(app.package, verb.when):
        console.print(f"NAME is one of: {', '.join(options(app.package, verb.when))}\n")
    table = Table("key", "default", "meaning", box=None, pad_edge=False, header_style="bold")
    # A subclass that gives a key again overrules it, in its place.
    keys = {key: (default, comment) for key, default, comment in describe(load_object(verb.schema))}
    for key, (default, comment) in keys.items():
        table.add_row(key, escape(default), escape(comment), style=None if comment or default else "bold")
    console.print(table)
    console.print("\nDefaults are these unless a configuration of a group (data=, model=, …) or a recipe sets them.")
    if "trainer" in keys:
        console.print("trainer.* takes every field of transformers.TrainingArguments.")


def describe(schema: type, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield (key, default, comment) of a configuration class, nested ones included, from its source."""
    import typing

    hints = typing.get_type_hints(schema)
    for cls in reversed(schema.__mro__[:-1]):
        source = textwrap.dedent(inspect.getsource(cls))
        lines = source.splitlines()
        for node in ast.parse(source).body[0].body:  # type: ignore[attr-defined]
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            name = node.target.id
            hint = hints[name]
            if inspect.isclass(hint) and hasattr(hint, "__dataclass_fields__"):
                yield from describe(hint, f"{prefix}{name}.")
                continue
            default = ast.unparse(node.value) if node.value else ""
            default = {"MISSING": "(required)", "None": "null", "field(default_factory=dict)": "{}"}.get(
                default, default
            )
            comments = filter(None, map(_comment, lines[node.lineno - 1 : node.end_lineno]))
            yield f"{prefix}{name}", default.strip("'\""), " ".join(comments)


def _comment(line: str) -> str:
    """Return what stands behind ``#``, unless it is a linter's mark."""
    found = line.partition("  # ")[2]
    return "" if found.startswith("noqa") else found
