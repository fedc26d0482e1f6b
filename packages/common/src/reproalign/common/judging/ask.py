"""Asking a judge about two sets of answers: every question in both orders, resumable, and what its verdicts come to."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich.table import Table

from reproalign.common.data.reading import Row, read_local
from reproalign.common.errors import UserError
from reproalign.common.files import write_text
from reproalign.common.journal import growing, recover_lines
from reproalign.common.judging.endpoint import EndpointConfig, EndpointError, ask_all
from reproalign.common.judging.verdict import WinRate, check_template, question, score, verdict, win_rate

ShownKey = tuple[int, str]  # index of the instruction, and whose answer is shown first: first | second
SIDES = ("first", "second")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Bout:
    """An instruction, and the answers of the two models that are compared."""

    instruction: str
    first: str
    second: str


@contextmanager
def keeping_answers() -> Iterator[None]:
    """Turn an endpoint's failure into a user's mistake; goes around an open run.

    Only there, since a run that ends with a user's mistake removes what it wrote.
    """
    try:
        yield
    except EndpointError as error:
        raise UserError(f"{error}; the answers so far are kept, and the same command goes on from them") from error


def read_template(path: str) -> str:
    """Read a judge's template from a file.

    Raises:
        UserError: if it cannot be read, or a field is missing in it.
    """
    try:
        return check_template(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"template={path}: cannot be read ({error})") from error


def both_orders(bouts: Sequence[Bout], template: str) -> dict[ShownKey, str]:
    """Return the questions: two of each bout."""
    questions = {}
    for index, bout in enumerate(bouts):
        for side, (a, b) in zip(SIDES, ((bout.first, bout.second), (bout.second, bout.first)), strict=True):
            questions[index, side] = question(bout.instruction, a, b, template)
    return questions


def collect_answers(
    endpoint: EndpointConfig, questions: Mapping[ShownKey, str], bouts: Sequence[Bout], path: Path
) -> dict[ShownKey, str]:
    """Return all answers: those that ``path`` holds, and the endpoint's to the other questions.

    ``path`` grows answer by answer.

    Raises:
        EndpointError: if the endpoint fails after it gave answers, which ``path`` holds.
        UserError: if it gave none, or ``path`` has answers to other questions.
    """
    answers = kept_entries(path, bouts, "answer", str)
    if len(answers) == len(questions):
        return answers
    with growing(path) as append:

        def write(key: ShownKey, answer: str) -> None:
            answers[key] = answer
            append(entry_line(key, bouts, answer=answer))

        try:
            ask_all(endpoint, {key: text for key, text in questions.items() if key not in answers}, write)
        except EndpointError as error:
            if answers:
                raise
            raise UserError(str(error)) from error  # there is nothing to keep
    return answers


def given_answers(path: Path, bouts: Sequence[Bout]) -> dict[ShownKey, str]:
    """Read answers that were collected elsewhere: index, shown_first, answer.

    Raises:
        UserError: naming the first that is missing, or a row that is none.
    """
    answers = dict(_entry(row, bouts, "answer", str) for row in read_local(path))
    wanted = [(index, side) for index in range(len(bouts)) for side in SIDES]
    missing = next((key for key in wanted if key not in answers), None)
    if missing is not None:
        raise UserError(f"{path}: no answer for index={missing[0]}, shown_first={missing[1]}; give all {len(wanted)}")
    return {key: answers[key] for key in wanted}


def write_questions(questions: Mapping[ShownKey, str], bouts: Sequence[Bout], path: Path) -> None:
    """Write the questions for whatever will answer them."""
    write_text(path, "".join(entry_line(key, bouts, question=text) for key, text in questions.items()))


def read_verdicts(answers: Mapping[ShownKey, str], bouts: Sequence[Bout], path: Path, confidence: float) -> WinRate:
    """Read the verdicts in the judge's answers, write them to ``path``, and return what they come to."""
    return write_verdicts({key: verdict(answer) for key, answer in answers.items()}, bouts, path, confidence)


def write_verdicts(
    verdicts: Mapping[ShownKey, float | None],
    bouts: Sequence[Bout],
    path: Path,
    confidence: float,
    more: Sequence[Mapping[str, Any]] | None = None,
) -> WinRate:
    """Write what each order's verdict gives the answer shown first, and the scores, to ``path``; sum them up.

    Args:
        verdicts: None where there is none.
        bouts: what they are about.
        path: one JSON line for each bout.
        confidence: of the win rate's interval.
        more: further columns of each line.
    """
    lines, pairs = [], []
    for index, bout in enumerate(bouts):
        left, right = (verdicts[index, side] for side in SIDES)
        both = None if left is None or right is None else score(left, right)
        pairs.append((left, right))
        row = {"index": index, "instruction": bout.instruction, "verdicts": [left, right], "score": both}
        lines.append(json.dumps({**row, **(more[index] if more else {})}, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))
    return win_rate(pairs, confidence)


def win_table(result: WinRate, title: str, count: int, confidence: float, orders: str = "both orders") -> Table:
    """Return a table of what the verdicts on ``count`` instructions came to."""
    table = Table(title, f"{count} instructions, {orders}", header_style="bold")
    interval = f" [{_number(result.low)}, {_number(result.high)}] at {confidence:.0%}"
    table.add_row("win rate (ties count half)", _number(result.win_rate) + (interval if result.low is not None else ""))
    for name in ("wins", "ties", "losses", "unreadable"):
        table.add_row(name, str(getattr(result, name)))
    table.add_row("same verdict in both orders", _number(result.consistent))
    table.add_row("verdicts for the answer shown first", _number(result.shown_first))
    return table


def kept_entries(path: Path, bouts: Sequence[Bout], name: str, kind: type[Value]) -> dict[ShownKey, Value]:
    """Read what an interrupted run kept, line by line, of the judge's work: index, shown_first and ``name``.

    Raises:
        UserError: for a line that is none, or is about another instruction.
    """
    entries: dict[ShownKey, Value] = {}
    for number, line in enumerate(recover_lines(path), start=1):
        try:
            row = Row(f"{path} line {number}", json.loads(line))
        except ValueError as error:
            raise UserError(f"{path} line {number}: not valid JSON ({error}); choose another output_dir") from error
        key, entries[key] = _entry(row, bouts, name, kind)
    return entries


def entry_line(key: ShownKey, bouts: Sequence[Bout], **values: Any) -> str:
    """Return the line that :func:`kept_entries` reads ``values`` from."""
    row = {"index": key[0], "shown_first": key[1], "instruction": bouts[key[0]].instruction, **values}
    return json.dumps(row, ensure_ascii=False) + "\n"


def _entry(row: Row, bouts: Sequence[Bout], name: str, kind: type[Value]) -> tuple[ShownKey, Value]:
    values: Any = row.values
    if row.problem or not isinstance(values, dict) or not isinstance(values.get(name), kind):
        wanted = f"index, shown_first and {name} ({'text' if kind is str else 'number'}) are needed"
        raise UserError(f"{row.place}: {row.problem or wanted}")
    index, side = values.get("index"), values.get("shown_first")
    if not isinstance(index, int) or index < 0 or side not in SIDES:
        raise UserError(f"{row.place}: index must count from 0, and shown_first be first or second")
    instruction = values.get("instruction")
    if index < len(bouts) and instruction is not None and instruction != bouts[index].instruction:
        raise UserError(f"{row.place}: index={index} has another instruction in the files; give answers about these")
    return (index, side), values[name]


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
