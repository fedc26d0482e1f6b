"""Errors that the user can fix: one sentence that says what, where and what to do."""

from __future__ import annotations

import difflib
import errno
import os
import re
import signal
import sys
import threading
from collections.abc import Iterable, Iterator

_BREAKS = re.compile(r"[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]")  # what str.splitlines breaks lines at
INTERRUPTED = 128  # exit codes above it: a signal ended the work


class _SentenceError(Exception):
    def __str__(self) -> str:
        return _one_line(super().__str__())


class UserError(_SentenceError):
    r"""A mistake in what the user gave (a key, a file, a row, a launch).

    Commands print its message on one line, without a traceback, and exit with code 2. Raise it before
    anything is written; the message names the thing, the place and the remedy. It is one line: a break in a name or a
    value of the user's that it repeats is written ``\n``.
    """


class FinishedError(UserError):
    """The folder holds this very run, finished: a mistake of a user's, and nothing to do for a run that wants it."""


class ReportedError(_SentenceError):
    """A failure that is no mistake of the user's, and whose details were printed where it happened.

    Commands print its message on one line, without a traceback, and exit with code 1.
    """


class Interruption(KeyboardInterrupt):
    """A signal ended the work: Ctrl-C's, a scheduler's.

    Commands print one line, and exit with :attr:`exit_code`.

    Attributes:
        number: of the signal.
        where: how far the work came, if it says so; a clause.
        exit_code: 128 + the signal's number, as shells have it.
    """

    def __init__(self, number: int = signal.SIGINT, where: str = "") -> None:
        self.number = number
        self.where = where
        self.exit_code = INTERRUPTED + number
        super().__init__(f"interrupted by {signal.Signals(number).name}{where and f' {where}'}")


class PreviewedError(Exception):
    """A dry run has said what it can: it ends here, and well."""


def _one_line(text: str) -> str:
    """Write line breaks as escapes."""
    return _BREAKS.sub(lambda found: repr(found[0])[1:-1], text)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message that says something, or the error's name."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the choice nearest to ``word``, or an empty string."""
    near = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: ``1 process``, ``2 processes``."""
    ending = "" if number == 1 else "es" if noun.endswith(("s", "h")) else "s"
    return f"{number} {noun}{ending}"


def choose(kind: str, word: str, choices: Iterable[str]) -> str:
    """Return ``word`` if it is one of ``choices``.

    Raises:
        UserError: otherwise, naming the choices and the nearest of them.
    """
    known = sorted(choices)
    if word not in known:
        raise UserError(f"unknown {kind} '{word}'{did_you_mean(word, known)}; choose one of: {', '.join(known)}")
    return word


def mistake_in(error: Exception) -> str | None:
    """Return the sentence on what the user can repair: a :class:`UserError`'s, or one on disk and rights; else None."""
    return str(error) if isinstance(error, UserError) else trouble_of_the_system(error)


def interruption_behind(error: BaseException) -> Interruption | None:
    """Return the signal that led to ``error``: a library's own error may come of work that one broke off."""
    return next((cause for cause in _led_to(error) if isinstance(cause, Interruption)), None)


def _led_to(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, what led to it, and what to that."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def shorten_errors_of_threads() -> None:
    """Let a thread that a full disk or missing rights end say so on one line.

    A tracker writes in a thread; its error comes up again where the work waits for it, and is reported there.
    """
    threading.excepthook = _on_error_of_thread


def _on_error_of_thread(arguments: threading.ExceptHookArgs) -> None:
    trouble = arguments.exc_value and trouble_of_the_system(arguments.exc_value)
    if not trouble:
        threading.__excepthook__(arguments)
        return
    print(f"{arguments.thread.name if arguments.thread else 'a thread'}: {trouble}", file=sys.stderr)


def trouble_of_the_system(error: BaseException) -> str | None:
    """Say in one sentence what disk, rights or a vanished file have to do with ``error``; None if they have nothing.

    Libraries report them in ways of their own: what led to an error is looked through, the number of the operating
    system's error that a Rust library writes into its message is read, and torch's word for a file that was cut off.
    """
    place = next(iter(getattr(error, "__notes__", [])), "")  # where the run writes
    for cause in _led_to(error):
        number, path = getattr(cause, "errno", 0), getattr(cause, "filename", None)
        if not number and (found := re.search(r"\(os error (\d+)\)", str(cause))):
            number = int(found[1])
        if not number and re.search(r"PytorchStreamWriter failed|unexpected pos \d+ vs \d+", str(cause)):
            number = errno.ENOSPC
        for numbers, remedy in _REMEDIES:
            if number in numbers:
                where = path or (f"{place} or the cache" if place else "")
                said = f"{where and f'{where}: '}{os.strerror(number).lower()}; {remedy}"
                return _one_line(f"{said}, and give the same command again")
    return None


_REMEDIES = (
    ((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "free some space"),
    ((errno.EROFS, errno.EACCES, errno.EPERM), "choose a place that this user may use, or change its rights"),
    ((errno.ENOENT, errno.ENOTDIR, errno.ESTALE), "put back what is gone"),
    ((errno.EIO,), "look after the disk"),
    ((errno.EMFILE, errno.ENFILE), "allow more open files (ulimit -n)"),
)
