"""Single-answer grading as in MT-Bench: a judge rates each turn of an answer; FastChat's judgment files."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reproalign.common.data.fastchat import Answer, Question, QuestionId
from reproalign.common.data.records import Message
from reproalign.common.errors import UserError
from reproalign.common.evaluation.mtbench import rating
from reproalign.common.journal import growing, recover_lines
from reproalign.common.judging.endpoint import EndpointConfig, ask_all
from reproalign.common.judging.single_prompts import JudgePrompt, Kind

WITH_REFERENCE = ("math", "reasoning", "coding", "arena-hard-200")  # FastChat's categories with reference answers
TURNS = 2  # that there are prompts for
TurnKey = tuple[QuestionId, int]  # question, turn


def references_for(
    questions: Sequence[Question], answers: Mapping[QuestionId, Answer] | None
) -> dict[QuestionId, tuple[str, ...]]:
    """Return the reference answers, turn by turn, of the questions whose category has them.

    Args:
        questions: all that are graded.
        answers: FastChat's reference answers; None: what the questions themselves hold as ``reference``.

    Raises:
        UserError: naming a question whose reference answer is missing.
    """
    found = {}
    for question in questions:
        if question.category in WITH_REFERENCE:
            turns = answers[question.id].choices[0].turns if answers is not None else question.reference
            if len(turns) < len(question.turns):
                raise UserError(
                    f"question {question.id} ({question.category}) has no reference answer to each of its "
                    f"{len(question.turns)} turns, which the judge needs; set references=FILE, an answer file such as "
                    "FastChat's reference_answer/gpt-4.jsonl"
                )
            found[question.id] = turns
    return found


def check_gradable(questions: Sequence[Question]) -> None:
    """Refuse questions with more turns than there are prompts for.

    Raises:
        UserError: naming one.
    """
    for question in questions:
        if len(question.turns) > TURNS:
            raise UserError(
                f"question {question.id} has {len(question.turns)} turns; single-answer grading knows one and two"
            )


def requests_for(
    questions: Sequence[Question],
    answers: Mapping[QuestionId, Answer],
    references: Mapping[QuestionId, Sequence[str]],
    prompts: Mapping[Kind, JudgePrompt],
) -> dict[TurnKey, tuple[JudgePrompt, str]]:
    """Return what the judge is asked about each turn of the first choice of each answer: prompt and user's turn."""
    requests = {}
    for turn in range(1, TURNS + 1):
        for question in questions:
            if turn <= len(question.turns):
                reference = references.get(question.id)
                prompt = prompts[reference is not None, turn]
                fields = _fields(question, answers[question.id].choices[0].turns, reference, turn)
                requests[question.id, turn] = prompt, prompt.template.format_map(fields)
    return requests


def _fields(question: Question, answers: Sequence[str], reference: Sequence[str] | None, turn: int) -> dict[str, str]:
    fields = {f"ref_answer_{number}": text for number, text in enumerate(reference or (), start=1)}
    if turn == 1:
        return {**fields, "question": question.turns[0], "answer": answers[0]}
    fields |= {f"question_{number}": text for number, text in enumerate(question.turns, start=1)}
    return {**fields, **{f"answer_{number}": text for number, text in enumerate(answers, start=1)}}


def collect_judgments(
    endpoint: EndpointConfig, requests: Mapping[TurnKey, tuple[JudgePrompt, str]], path: Path, model_id: str
) -> list[dict[str, Any]]:
    """Return the judge's ratings: those that ``path`` holds, and the endpoint's to the other requests.

    ``path`` is FastChat's judgment file, which grows judgment by judgment: question_id, model, judge (its model and the
    prompt), user_prompt, judgment, score (:func:`~reproalign.common.evaluation.mtbench.rating`), turn, tstamp.

    Raises:
        EndpointError: if the endpoint fails; ``path`` holds what it has answered.
        UserError: if ``path`` has judgments of other answers.
    """
    rows = _kept(path, requests)
    todo = {key: _messages(*request) for key, request in requests.items() if key not in rows}
    if todo:
        with growing(path) as append:

            def write(key: TurnKey, judgment: str) -> None:
                prompt, text = requests[key]
                rows[key] = {
                    "question_id": key[0],
                    "model": model_id,
                    "judge": [endpoint.model, prompt.name],
                    "user_prompt": text,
                    "judgment": judgment,
                    "score": rating(judgment),
                    "turn": key[1],
                    "tstamp": time.time(),
                }
                append(json.dumps(rows[key], ensure_ascii=False) + "\n")

            ask_all(endpoint, todo, write)
    return [rows[key] for key in requests]


def has_judgments(path: Path) -> bool:
    """Say whether a judgment file holds anything."""
    return bool(recover_lines(path))


def _messages(prompt: JudgePrompt, text: str) -> list[Message]:
    system = [{"role": "system", "content": prompt.system}] if prompt.system else []
    return [*system, {"role": "user", "content": text}]


def _kept(path: Path, requests: Mapping[TurnKey, tuple[JudgePrompt, str]]) -> dict[TurnKey, dict[str, Any]]:
    rows = {}
    for number, line in enumerate(recover_lines(path), start=1):
        try:
            row = json.loads(line)
            key = row["question_id"], row["turn"]
            fits = key in requests and row["user_prompt"] == requests[key][1] and isinstance(row["judgment"], str)
        except (ValueError, KeyError, TypeError):
            fits = False
        if not fits:
            raise UserError(f"{path} line {number}: not a judgment of these answers; choose another output_dir")
        rows[key] = {**row, "score": rating(row["judgment"])}
    return rows
