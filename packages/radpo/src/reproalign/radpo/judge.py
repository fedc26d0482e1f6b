"""``radpo judge``: a language model compares the responses in two AlpacaEval files."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from reproalign.common.errors import UserError
from reproalign.common.evaluation.alpacaeval import Output, check_same_instructions, read_outputs
from reproalign.common.files import sha256_json
from reproalign.common.invocation import Invocation
from reproalign.common.judging.ask import (
    SIDES,
    Bout,
    both_orders,
    check_confidence,
    collect_answers,
    given_answers,
    keeping_answers,
    read_template,
    read_verdicts,
    win_table,
    write_questions,
)
from reproalign.common.judging.endpoint import check_endpoint
from reproalign.common.judging.verdict import TEMPLATE
from reproalign.common.records import Run
from reproalign.radpo.config import JudgeConfig


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
    bouts = [
        Bout(left["instruction"], left["output"], right["output"]) for left, right in zip(first, second, strict=True)
    ]
    questions = both_orders(bouts, TEMPLATE if config.template is None else read_template(config.template))
    with keeping_answers(), Run.open(invocation) as run:
        for name, outputs in zip(SIDES, (first, second), strict=True):
            run.add_fingerprint("data", name, sha256_json(outputs), path=getattr(config, name), rows=len(outputs))
        if config.answers:
            answers = given_answers(Path(config.answers).expanduser(), bouts)
        elif config.endpoint.model:
            answers = collect_answers(config.endpoint, questions, bouts, run.dir / "judgments.jsonl")
        else:
            path = run.dir / "questions.jsonl"
            write_questions(questions, bouts, path)
            remedy = "replace 'question' by the judge's 'answer' and give the file as answers=FILE"
            Console().print(f"{len(questions)} questions: {path}; {remedy}", highlight=False)
            return
        result = read_verdicts(answers, bouts, run.dir / "verdicts.jsonl", config.confidence)
        run.set_metrics(asdict(result))
        title = f"{_generators(first)} against {_generators(second)}"
        Console().print(win_table(result, title, len(bouts), config.confidence))
        Console().print(f"answers and verdicts: {run.dir}", highlight=False)


def _check(config: JudgeConfig) -> None:
    if config.answers and config.endpoint.model:
        raise UserError("both answers and endpoint.model are given; the judge's answers come from one of them")
    check_confidence(config.confidence)
    if config.max_instructions is not None and config.max_instructions < 1:
        raise UserError(f"max_instructions={config.max_instructions} must be at least 1")
    check_endpoint(config.endpoint)


def _generators(outputs: list[Output]) -> str:
    return ", ".join(dict.fromkeys(output["generator"] for output in outputs))
