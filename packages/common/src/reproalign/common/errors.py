"""Errors that the user can fix: one sentence that says what, where and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake in what the user gave (a key, a file, a row, a launch).

    Commands print its message on one line, without a traceback, and exit with code 2. Raise it before
    anything is written; the message names the thing, the place and the remedy.
    """


class ReportedError(Exception):
    """A failure that is no mistake of the user's, and whose details were printed where it happened.

    Commands print its message on one line, without a traceback, and exit with code 1.
    """


class PreviewedError(Exception):
    """A dry run has said what it can: it ends here, and well."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that says something, or the error's name."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the choice nearest to ``word``, or an empty string."""
    near = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""


def choose(kind: str, word: str, choices: Iterable[str]) -> str:
    """Return ``word`` if it is one of ``choices``.

    Raises:
        UserError: otherwise, naming the choices and the nearest of them.
    """
    known = sorted(choices)
    if word not in known:
        raise UserError(f"unknown {kind} '{word}'{did_you_mean(word, known)}; choose one of: {', '.join(known)}")
    return word
