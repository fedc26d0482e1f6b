"""``radpo judge``: a language model compares the responses in two AlpacaEval files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from reproalign.common.data.reading import Row, read_local
from reproalign.common.errors import UserError
from reproalign.common.evaluation.alpacaeval import Output, check_same_instructions, read_outputs
from reproalign.common.evaluation.endpoint import EndpointError, ask_all, check_endpoint
from reproalign.common.evaluation.judge import TEMPLATE, check_template, question, score, verdict, win_rate
from reproalign.common.files import recover_lines, sha256_json, write_text
from reproalign.common.invocation import Invocation
from reproalign.common.records import Run
from reproalign.radpo.config import JudgeConfig

Key = tuple[int, str]  # index of the instruction, and whose answer is shown first: first | second
SIDES = ("first", "second")


def judge(config: JudgeConfig, invocation: Invocation) -> None:
    """Ask about every instruction in both orders, and tell the win rate of ``first`` against ``second``.

    ``judgments.jsonl`` grows answer by answer, and an interrupted run goes on where it stopped; ``verdicts.jsonl`` has
    what is read in them. Without an endpoint's model ``answers`` is read; without either, ``questions.jsonl`` is
    written for whatever will answer them.
    """
    _check(config)
    first, second = (read_outputs(Path(path).expanduser()) for path in (config.first, config.second))
    check_same_instructions(first, second)
    first, second = first[: config.max_instructions], second[: config.max_instructions]
    questions = _questions(first, second, _template(config))
    try:
        with Run.open(invocation) as run:
            for name, outputs in zip(SIDES, (first, second), strict=True):
                run.add_fingerprint("data", name, sha256_json(outputs), path=getattr(config, name), rows=len(outputs))
            if config.answers:
                answers = _given_answers(Path(config.answers).expanduser(), first)
            elif config.endpoint.model:
                answers = _collect(config, questions, first, run.dir / "judgments.jsonl")
            else:
                _write_questions(questions, first, run.dir / "questions.jsonl")
                return
            _report(config, answers, first, second, run)
    except EndpointError as error:
        # Only now, since a run that ends with a user's mistake removes what it wrote.
        raise UserError(f"{error}; the answers so far are kept, and the same command goes on from them") from error


def _check(config: JudgeConfig) -> None:
    if config.answers and config.endpoint.model:
        raise UserError("both answers and endpoint.model are given; the judge's answers come from one of them")
    if not 0 < config.confidence < 1:
        raise UserError(f"confidence={config.confidence} must be between 0 and 1")
    if config.max_instructions is not None and config.max_instructions < 1:
        raise UserError(f"max_instructions={config.max_instructions} must be at least 1")
    check_endpoint(config.endpoint)


def _template(config: JudgeConfig) -> str:
    if config.template is None:
        return TEMPLATE
    try:
        return check_template(Path(config.template).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"template={config.template}: cannot be read ({error})") from error


def _questions(first: list[Output], second: list[Output], template: str) -> dict[Key, str]:
    questions = {}
    for index, (left, right) in enumerate(zip(first, second, strict=True)):
        for side, (a, b) in zip(SIDES, ((left, right), (right, left)), strict=True):
            questions[index, side] = question(left["instruction"], a["output"], b["output"], template)
    return questions


def _collect(config: JudgeConfig, questions: Mapping[Key, str], outputs: list[Output], path: Path) -> dict[Key, str]:
    """Return all answers: those that ``path`` holds, and the endpoint's to the other questions."""
    answers: dict[Key, str] = {}
    for number, line in enumerate(recover_lines(path), start=1):
        try:
            row = Row(f"{path} line {number}", json.loads(line))
        except ValueError as error:
            raise UserError(f"{path} line {number}: not valid JSON ({error}); choose another output_dir") from error
        key, answers[key] = _answer(row, outputs)
    if len(answers) == len(questions):
        return answers
    with path.open("a", encoding="utf-8") as stream:

        def write(key: Key, answer: str) -> None:
            answers[key] = answer
            stream.write(json.dumps(_row(key, outputs, answer=answer), ensure_ascii=False) + "\n")
            stream.flush()

        try:
            ask_all(config.endpoint, {key: text for key, text in questions.items() if key not in answers}, write)
        except EndpointError as error:
            if answers:
                raise
            raise UserError(str(error)) from error  # there is nothing to keep
    return answers


def _given_answers(path: Path, outputs: list[Output]) -> dict[Key, str]:
    answers = dict(_answer(row, outputs) for row in read_local(path))
    wanted = [(index, side) for index in range(len(outputs)) for side in SIDES]
    missing = next((key for key in wanted if key not in answers), None)
    if missing is not None:
        raise UserError(f"{path}: no answer for index={missing[0]}, shown_first={missing[1]}; give all {len(wanted)}")
    return {key: answers[key] for key in wanted}


def _answer(row: Row, outputs: list[Output]) -> tuple[Key, str]:
    values: Any = row.values
    if row.problem or not isinstance(values, dict) or not isinstance(values.get("answer"), str):
        raise UserError(f"{row.place}: {row.problem or 'index, shown_first and answer (text) are needed'}")
    index, side = values.get("index"), values.get("shown_first")
    if not isinstance(index, int) or index < 0 or side not in SIDES:
        raise UserError(f"{row.place}: index must count from 0, and shown_first be first or second")
    instruction = values.get("instruction")
    if index < len(outputs) and instruction is not None and instruction != outputs[index]["instruction"]:
        raise UserError(f"{row.place}: index={index} has another instruction in the files; give answers about these")
    return (index, side), values["answer"]


def _write_questions(questions: Mapping[Key, str], outputs: list[Output], path: Path) -> None:
    rows = [_row(key, outputs, question=text) for key, text in questions.items()]
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    Console().print(
        f"{len(rows)} questions: {path}; replace 'question' by the judge's 'answer' and give the file as answers=FILE",
        highlight=False,
    )


def _row(key: Key, outputs: list[Output], **text: str) -> dict[str, Any]:
    return {"index": key[0], "shown_first": key[1], "instruction": outputs[key[0]]["instruction"], **text}


def _report(
    config: JudgeConfig, answers: Mapping[Key, str], first: list[Output], second: list[Output], run: Run
) -> None:
    """Read the verdicts, record them and print the table."""
    rows, verdicts = [], []
    for index, output in enumerate(first):
        left, right = (verdict(answers[index, side]) for side in SIDES)
        both = None if left is None or right is None else score(left, right)
        verdicts.append((left, right))
        rows.append({"index": index, "instruction": output["instruction"], "verdicts": [left, right], "score": both})
    write_text(run.dir / "verdicts.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    result = win_rate(verdicts, config.confidence)
    run.set_metrics(asdict(result))
    names = [_generators(outputs) for outputs in (first, second)]
    table = Table(f"{names[0]} against {names[1]}", f"{len(first)} instructions, both orders", header_style="bold")
    interval = f" [{_number(result.low)}, {_number(result.high)}] at {config.confidence:.0%}"
    table.add_row("win rate (ties count half)", _number(result.win_rate) + (interval if result.low is not None else ""))
    for name in ("wins", "ties", "losses", "unreadable"):
        table.add_row(name, str(getattr(result, name)))
    table.add_row("same verdict in both orders", _number(result.consistent))
    table.add_row("verdicts for the answer shown first", _number(result.shown_first))
    Console().print(table)
    Console().print(f"answers and verdicts: {run.dir}", highlight=False)


def _generators(outputs: list[Output]) -> str:
    return ", ".join(dict.fromkeys(output["generator"] for output in outputs))


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
