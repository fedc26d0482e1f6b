"""``--help``: of a command its verbs, recipes and flags; of a verb its keys, with values in force and meanings."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from reproalign.common.console import result_console
from reproalign.common.invocation import Verb
from reproalign.common.options.declare import Option
from reproalign.common.options.keys import fields, is_section

if TYPE_CHECKING:
    from reproalign.common.command.app import App

FLAGS = {
    "--help": "show this help, or with a verb its keys",
    "--version": "show the version",
    "--cfg": "print the resolved configuration, which config=FILE takes back, and stop",
    "--dry-run": "check what can be checked without weights, say what would be run (rows, steps, memory), and stop",
    "--show-tokens": "print the first three training rows as tokens with the loss mask, and stop before training",
    "--quiet": "show results, warnings and errors, and no progress (also: REPROALIGN_QUIET=1)",
    "--traceback": "show Python's traceback with an error",
}
Line = tuple[str, str, str]  # key, value in force, meaning; of a section's heading: its name, "", what it is


def print_help(app: App) -> None:
    """Print what a command does."""
    from reproalign.common.command.recipes import listing, read_headers

    console = result_console()
    console.print(Text.assemble((app.command, "bold"), f": {app.title}\n"))
    recipes = read_headers(app.package)
    usage = "VERB [experiment=RECIPE] [key=value …]" if recipes else "VERB …"
    console.print(f"Usage: {app.command} {usage}\n", style="cyan")
    verbs = Table("verb", "what it does", box=None, pad_edge=False, header_style="bold")
    for verb in app.verbs:
        verbs.add_row(f"{verb.name} {verb.when}=…" if verb.when else verb.name, verb.help)
    for name, text, _ in app.more:
        verbs.add_row(name, text)
    if recipes:
        verbs.add_row("recipes", "list the published recipes, or show one with its command and numbers")
    verbs.add_row("completion", f'let the shell complete words: eval "$({app.command} completion bash)", or zsh')
    console.print(verbs)
    if recipes:
        console.print("\nrecipes", style="bold")
        for line in listing(recipes, console.width):
            console.print(line, soft_wrap=True)
    flags = Table("\nflag", "\n", box=None, pad_edge=False, header_style="bold")
    for flag, text in FLAGS.items():
        flags.add_row(flag, text)
    console.print(flags)
    read_on = f"`{app.command} recipes NAME`, `{app.command} VERB --help`, and the README and ERRATA of packages/"
    where = f"{read_on}{app.package.rpartition('.')[2]}" if recipes else f"`{app.command} VERB --help`, and docs/"
    console.print(f"\nRead on: {where}.")


def print_verb_help(app: App, verb: Verb, words: Sequence[str]) -> None:
    """Print a verb's keys, with the values that ``words`` (recipe, groups, keys) leave in force.

    On a terminal meanings are wrapped below their keys; elsewhere every key is one line.
    """
    from reproalign.common.options.compose import in_force
    from reproalign.common.options.groups import options, verb_groups

    composed = in_force(app.package, verb.config_name, verb.schema, words)
    names = verb_groups(app.package, verb.config_name)
    shown = [verb.positional.upper()] if verb.positional else []
    shown += [f"{verb.when}={'NAME' if verb.when in names else '…'}"] if verb.when else []
    shown += ["[experiment=RECIPE]"] if "experiment" in names else []
    print(f"{app.command} {verb.name}: {verb.help}\n")
    print(" ".join(["Usage:", app.command, verb.name, *shown, "[key=value …]"]), end="\n\n")
    print("Values are those in force with what the command line names; (required): to be given.")
    for name in names:
        own = recipes_of(app, verb) if name == "experiment" else options(app.package, name)
        print_line((f"{name}=NAME", "", f"one of: {', '.join(own)}" if own else "none is published"))
    print_line(("config=FILE", "", "what --cfg printed, or a run's folder: its configuration, before the other words"))
    for line in lines(composed.schema, composed.config):
        print_line(line)


def recipes_of(app: App, verb: Verb) -> list[str]:
    """List the recipes of a verb."""
    from reproalign.common.command.recipes import read_headers

    return [name for name, header in read_headers(app.package).items() if header.get("verb", verb.name) == verb.name]


def lines(schema: type, values: Mapping[str, Any], prefix: str = "") -> Iterator[Line]:
    """Yield what help says of every key of a configuration class.

    Args:
        schema: the class.
        values: in force, nested; a missing section has the defaults of its class.
        prefix: of the keys.
    """
    for field in fields(schema):
        key = f"{prefix}{field.name}"
        value: Any = values.get(field.name)
        if is_section(field.kind):
            about = field.option.help if field.option else (field.kind.__doc__ or "").partition("\n")[0]
            yield f"\n{key}.*", "", about
            yield from lines(field.kind, value or {}, f"{key}.")
            continue
        option = field.option or Option("(no meaning)")
        foreign = {name: entry for name, entry in option.fields.items() if isinstance(entry, Option)}
        if foreign:
            yield f"\n{key}.*", "", meaning(option)
            for name in dict.fromkeys([*foreign, *(value or {})]):
                entry = foreign.get(name)
                yield (
                    f"{key}.{name}",
                    _shown(value[name]) if name in (value or {}) else "",
                    meaning(entry) if entry else "",
                )
            continue
        yield key, _shown(field.default if field.name not in values else value), meaning(option)
        if is_section(field.entry):
            yield from lines(field.entry, {}, f"{key}.NAME.")


def meaning(option: Option) -> str:
    """Say what a key means and what is allowed, in one line."""
    choices = option.choices if isinstance(option.choices, Mapping) else dict.fromkeys(option.allowed(), "")
    named = ", ".join(f"{name} ({text})" if text else str(name) for name, text in choices.items())
    parts = [
        option.help,
        f"in {option.unit}" if option.unit else "",
        option.range(),
        " or ".join(filter(None, [f"one of: {named}" if named else "", option.also])),
        f"null: {option.null}" if option.null else "",
        f"read by variant={option.variant} alone" if option.variant else "",
        f"read with {' or '.join(option.read_with)} alone" if option.read_with else "",
        f"from {option.source}" if option.source else "",
    ]
    return "; ".join(filter(None, parts))


def _shown(value: Any) -> str:
    from reproalign.common.options.words import as_word

    return "(required)" if value == "???" else as_word("", value).removeprefix("=")


def print_line(line: Line) -> None:
    """Print a key, its value and its meaning."""
    key, value, text = line
    head = f"{key} = {value}" if value else key
    if not sys.stdout.isatty():
        print(f"{head}  # {text}" if text else head)
        return
    print(head)
    width = min(shutil.get_terminal_size().columns, 120)
    indent = "    "
    whole: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}  # a name is there to be copied
    print(textwrap.fill(text, width, initial_indent=indent, subsequent_indent=indent, **whole))
