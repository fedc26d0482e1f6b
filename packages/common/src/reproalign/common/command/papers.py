"""``reproalign list``: the papers that are installed, and their recipes."""

from __future__ import annotations

import importlib.util
import json
import pkgutil
from collections.abc import Sequence

import reproalign
from reproalign.common.command.app import App, WordParser
from reproalign.common.command.recipes import family, listing, read_headers
from reproalign.common.console import result_console
from reproalign.common.errors import UserError
from reproalign.common.options.load import load_object


def papers(argv: Sequence[str]) -> int:
    """``reproalign list [WORD] [--json]``."""
    parser = WordParser(
        prog="reproalign list", description="List the papers that are installed, or the recipes of all by a word."
    )
    parser.add_argument("word", nargs="?", help="list the recipes whose name, title or table has it")
    parser.add_argument("--json", action="store_true", help="for a program: papers with verbs and recipes")
    arguments = parser.parse_args(argv)
    console = result_console()
    apps = installed()
    found = {app.command: read_headers(app.package) for app in apps}
    if arguments.word:
        word = arguments.word.lower()
        found = {
            command: {name: header for name, header in recipes.items() if word in f"{name} {header}".lower()}
            for command, recipes in found.items()
        }
        if not any(found.values()):
            raise UserError(
                f"no recipe has '{arguments.word}' in its name or header; `reproalign list` lists the papers"
            )
    if arguments.json:
        rows = [
            {
                "command": app.command,
                "title": app.title,
                "verbs": [verb.name for verb in app.verbs],
                "recipes": [
                    {"name": name, "family": family(name), **header} for name, header in found[app.command].items()
                ],
            }
            for app in apps
        ]
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return 0
    for app in apps:
        recipes = found[app.command]
        if arguments.word and not recipes:
            continue
        console.print(f"{app.command}: {app.title}", style="bold", soft_wrap=True)
        if arguments.word:
            for line in listing(recipes, console.width):
                console.print(line, soft_wrap=True)
        else:
            verbs = ", ".join(dict.fromkeys(verb.name for verb in app.verbs))
            console.print(f"  verbs: {verbs}")
            console.print(f"  {len(recipes)} recipes: `{app.command} recipes`")
    return 0


def installed() -> list[App]:
    """Return the commands of the papers that can be imported, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(reproalign.__path__) if module.name != "common")
    return [
        load_object(f"reproalign.{name}.cli:APP")
        for name in names
        if importlib.util.find_spec(f"reproalign.{name}.cli")
    ]
