"""Completion of command lines by the shell: ``eval "$(COMMAND completion bash)"``."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from reproalign.common.command.help import FLAGS, recipes_of
from reproalign.common.errors import UserError, choose
from reproalign.common.options.declare import Option

if TYPE_CHECKING:
    from reproalign.common.command.app import App
    from reproalign.common.invocation import Verb

ASK = "complete -o nospace -o default -C '{command} completion words' {command}"
SCRIPTS = {"bash": ASK, "zsh": f"autoload -U +X bashcompinit && bashcompinit\n{ASK}"}


def completion(app: App, argv: Sequence[str]) -> int:
    """``COMMAND completion bash|zsh`` prints a script; what that calls, ``completion words``, prints what fits.

    Bash puts the line before the cursor into COMP_LINE and COMP_POINT, and gives the piece to be replaced: what
    follows the last ``=`` of a word.
    """
    if argv[:1] == ["words"]:
        line = os.environ.get("COMP_LINE", "")[: int(os.environ.get("COMP_POINT") or 0)]
        *before, word = line.split(" ")
        piece = argv[2] if len(argv) > 2 else word
        for found in fitting(app, [other for other in before[1:] if other], word):
            print(found[len(word) - len(piece) :])
        return 0
    shell = choose("shell", argv[0] if argv else "", SCRIPTS)
    print(SCRIPTS[shell].format(command=shlex.quote(app.command)))
    return 0


def fitting(app: App, before: Sequence[str], word: str) -> list[str]:
    """Return what a word may become, one dot further; a word that is finished ends in a space.

    Args:
        app: the command.
        before: the words before it, without the command's name.
        word: what was typed of it.
    """
    try:
        found = [known for known in _known(app, before, word) if known.startswith(word)]
    except (UserError, ImportError):  # words that cannot be understood yet
        return []
    return [name for name in dict.fromkeys(_to_next_dot(known, len(word)) for known in found) if name != word]


def _to_next_dot(known: str, start: int) -> str:
    key, equals, _ = known.partition("=")
    dot = key.find(".", start) if equals else -1
    return known if dot < 0 else known[: dot + 1]


def _known(app: App, before: Sequence[str], word: str) -> Iterator[str]:
    from reproalign.common.command.app import find_verb, kinds_of, known_verbs, split_verb
    from reproalign.common.command.recipes import read_headers

    if word.startswith("-"):
        yield from _finished(FLAGS)
        return
    given = [other for other in before if not other.startswith("-")]
    if not given:
        yield from _finished(name.split()[0] for name in known_verbs(app))
    elif given == ["recipes"]:
        yield from _finished(read_headers(app.package))
    elif given == ["completion"]:
        yield from _finished(SCRIPTS)
    elif len(given) == 1 and (kinds := kinds_of(app, given[0])):
        yield from _finished(kinds)
    elif given[0] not in (name for name, _, _ in app.more):
        name, rest = split_verb(app, given)
        yield from _of_verb(app, find_verb(app, name, rest), rest, word)


def _of_verb(app: App, verb: Verb, words: Sequence[str], word: str) -> Iterator[str]:
    """Yield a verb's groups and keys, or the values of the one that ``word`` begins with."""
    from reproalign.common.options.compose import in_force
    from reproalign.common.options.groups import options, verb_groups
    from reproalign.common.options.keys import locate

    groups = verb_groups(app.package, verb.config_name)
    given = [other for other in words if "=" in other]
    schema = in_force(app.package, verb.config_name, verb.schema, given).schema
    key, equals, _ = word.partition("=")
    if not equals:
        yield from (f"{group}=" for group in groups)
        yield from _keys(schema, word)
        return
    if key in groups:
        names = recipes_of(app, verb) if key == "experiment" else options(app.package, key)
        yield from _finished(f"{key}={name}" for name in names)
    found = locate(schema, key)
    if found and found[0].option is not None:
        values = ("true", "false") if found[0].kind is bool else found[0].option.allowed()
        yield from _finished(f"{key}={value}" for value in values)


def _keys(schema: type, word: str) -> Iterator[str]:
    """Yield the keys of a configuration class; those in a mapping once the name in it was typed."""
    from reproalign.common.options.keys import NAME, keys

    for key, field in keys(schema):
        head, inside, rest = key.partition(f".{NAME}.")
        if inside:
            name, dot, _ = word.removeprefix(f"{head}.").partition(".") if word.startswith(f"{head}.") else ("", "", "")
            yield f"{head}.{name}.{rest}=" if dot else f"{head}."
            continue
        yield f"{key}." if field.kind is dict else f"{key}="
        of_library = field.option.fields if field.option else {}  # those that are not set here are text that says why
        yield from (f"{key}.{name}=" for name, entry in of_library.items() if isinstance(entry, Option))


def _finished(words: Iterable[str]) -> Iterator[str]:
    return (f"{word} " for word in words)
