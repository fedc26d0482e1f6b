"""Recipes: the published runs of a paper, as ``configs/experiment/*.yaml``.

A recipe opens with ``# @package _global_`` and a header of ``# key: value`` lines; a line that begins with two spaces
after the ``#`` continues the value before it. Keys:

    title           one line
    verb            the verb it is for
    paper           table and row (or "none": not a published run)
    command         the exact command
    also            what else it is for: other seeds, other data (optional)
    hardware        what it was published on, or what it needs
    expected        the number to expect, with its source
    processes       number of processes the batch size is meant for
    global_batch    pairs (or sequences) per optimiser step, checked against the configuration
    not_established what could not be found out (optional)

A file ``_family.yaml`` holds what the members of a family have in common, and is no recipe; members name it in their
``defaults``. Its header may state verb, processes, global_batch and not_established for those members that do not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from reproalign.common.console import result_console, say
from reproalign.common.errors import UserError, did_you_mean

REQUIRED = ("title", "verb", "paper", "command", "hardware", "expected", "processes", "global_batch")
OF_FAMILY = ("verb", "processes", "global_batch", "not_established")  # what a member may leave to its family
ANYWHERE = "for any machine"
WIDE = 90  # columns behind name and verb from which what is expected is shown too


@cache
def read_headers(package: str) -> dict[str, dict[str, str]]:
    """Read the header of every recipe of ``package``: {name: {key: value}}; ``_family.yaml`` is none.

    They are read once per process, so nobody may change them.
    """
    texts = _read(package)
    headers = {name: parse_header(text) for name, text in sorted(texts.items()) if not name.startswith("_")}
    for name, header in headers.items():
        for base in _chain(name, texts)[1:]:
            for key, value in parse_header(texts[base]).items():
                if key in OF_FAMILY:
                    header.setdefault(key, value)
    return headers


def recipe_keys(package: str, words: Sequence[str]) -> set[str]:
    """Return the keys that the recipe among ``words`` and its family set; none if there is no such recipe."""
    import yaml

    names = [word.partition("=")[2] for word in words if word.startswith("experiment=")]
    texts = _read(package) if names else {}
    return {str(key) for name in names for file in _chain(name, texts) for key in yaml.safe_load(texts[file])}


@cache
def _read(package: str) -> dict[str, str]:
    folder = files(f"{package}.configs").joinpath("experiment")
    if not folder.is_dir():
        return {}
    entries = [entry for entry in folder.iterdir() if entry.name.endswith(".yaml")]
    return {entry.name.removesuffix(".yaml"): entry.read_text(encoding="utf-8") for entry in entries}


def _chain(name: str, texts: dict[str, str]) -> list[str]:
    """List a recipe and the files of its folder that it builds on, the nearest first; none for an unknown name."""
    if name not in texts:
        return []
    return [name, *(file for base in reversed(_bases(texts[name])) for file in _chain(base, texts))]


@cache
def _bases(text: str) -> tuple[str, ...]:
    """Return the files of its own folder that a configuration names in its defaults, which alone are parsed."""
    import yaml

    found = re.search(r"^defaults:.*?(?=^\w|\Z)", text, re.MULTILINE | re.DOTALL)
    return tuple(entry for entry in yaml.safe_load(found[0])["defaults"] if isinstance(entry, str)) if found else ()


def parse_header(text: str) -> dict[str, str]:
    """Parse the comment block at the head of a recipe."""
    header: dict[str, str] = {}
    key = ""
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if match := re.fullmatch(r"# (\w+): (.*)", line):
            key = match.group(1)
            header[key] = match.group(2).strip()
        elif line.startswith("#   ") and key:
            header[key] += f" {line[1:].strip()}"
    return header


def check_verb(command: str, package: str, verb: str, overrides: Sequence[str]) -> None:
    """Refuse a recipe that belongs to another verb.

    Raises:
        UserError: naming the right verb.
    """
    names = [word.partition("=")[2] for word in overrides if word.startswith("experiment=")]
    if names:
        headers = read_headers(package)
        wanted = headers[_known(command, names[-1], headers)].get("verb", verb)
        if wanted != verb:
            raise UserError(
                f"recipe '{names[-1]}' is for '{wanted}', not '{verb}'; run: {command} {wanted} experiment={names[-1]}"
            )


def recipes_command(command: str, package: str, words: Sequence[str]) -> int:
    """``<command> recipes [NAME] [--json]``."""
    headers = read_headers(package)
    names = [word for word in words if word != "--json"]
    if flags := [word for word in names if word.startswith("-")]:
        raise UserError(f"unknown flag '{flags[0]}' of '{command} recipes'; there is --json")
    if len(names) > 1:
        raise UserError(f"'{command} recipes' takes one name, got {len(names)}")
    chosen = {name: headers[_known(command, name, headers)] for name in names} or headers
    if "--json" in words:
        rows = [{"name": name, "family": family(name), **header} for name, header in chosen.items()]
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    elif names:
        _print_recipe(package, names[0], headers[names[0]], result_console())
    else:
        console = result_console()
        for line in listing(headers, console.width):
            console.print(line, soft_wrap=True, style=None if line.startswith(" ") else "bold")
        say(f"\n`{command} recipes NAME` shows one whole, `{command} recipes --json` all for a program.")
    return 0


def _known(command: str, name: str, headers: Collection[str]) -> str:
    """Return the name of a recipe; there are too many to list them in a sentence."""
    if name not in headers:
        raise UserError(f"unknown recipe '{name}'{did_you_mean(name, headers)}; `{command} recipes` lists them")
    return name


def family(name: str) -> str:
    """Return what a recipe's name and those of its kin begin with: up to the size of the model, e.g. ``gemma-2b``.

    Those on models that any machine runs are a family of their own.
    """
    found = re.match(r".*?(\d[\d.]*b|-large)(?=-|$)", name)
    return found.group() if found else ANYWHERE


def listing(headers: dict[str, dict[str, str]], width: int) -> list[str]:
    """Return one line per recipe below one for its family: the name whole, the rest as far as ``width`` columns go."""
    names = max(map(len, headers), default=0)
    verbs = max((len(header.get("verb", "")) for header in headers.values()), default=0)
    families: dict[str, list[str]] = {}
    for name in headers:
        families.setdefault(family(name), []).append(name)
    lines = []
    for title, members in sorted(families.items(), key=lambda entry: entry[0] == ANYWHERE):
        lines.append(f"{title} ({len(members)})")
        for name in members:
            header = headers[name]
            start = f"  {name:{names}}  {header.get('verb', ''):{verbs}}  "
            room = width - len(start)
            text = header.get("title", "")
            if room > WIDE:
                text = f"{text}; expected: {header.get('expected', '')}"
            lines.append(start + (text if len(text) <= room else f"{text[: max(room - 1, 0)]}…"))
    return lines


def _print_recipe(package: str, name: str, header: dict[str, str], console: Console) -> None:
    from reproalign.common.records.paper import load_paper

    paper = load_paper(package)
    console.print(Text.assemble((name, "bold"), f": {header.get('title', '')}\n"))
    facts = Table(box=None, show_header=False, pad_edge=False)
    for key in ("paper", "hardware", "expected", "not_established", "global_batch", "processes"):
        if key in header:
            facts.add_row(key.replace("_", " "), header[key])
    console.print(facts)
    console.print("\nCommand:", style="bold")
    console.print(header.get("command", ""), soft_wrap=True)
    if "also" in header:
        console.print(header["also"], soft_wrap=True)
    targets = paper.get("targets", {}).get(name)
    if targets:
        table = Table("\nmeasure", "\nvalue", "\nsource", box=None, pad_edge=False, header_style="bold")
        for measure, entry in _entries(targets).items():
            table.add_row(measure, str(entry["value"]), str(entry.get("source", "")))
        console.print(table)
        used = {entry["source"] for entry in _entries(targets).values() if entry.get("source")}
        for letter in sorted(used & set(paper.get("sources", {}))):
            console.print(f"  {letter}: {paper['sources'][letter]}")
    console.print("\nCite:", style="bold")
    console.print(str(paper.get("bibtex", "")).strip(), soft_wrap=True)


def _entries(targets: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return measure -> value and source; a bare number has the source that the row states for all of its numbers."""
    return {
        measure: entry if isinstance(entry, dict) else {"value": entry, "source": targets.get("source", "")}
        for measure, entry in targets.items()
        if measure != "source"
    }
