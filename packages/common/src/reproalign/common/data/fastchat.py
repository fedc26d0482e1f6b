"""FastChat's files of questions and of models' answers, as its LLM judge reads and writes them: JSON lines."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reproalign.common.data.reading import Row, local_path, read_local
from reproalign.common.errors import UserError
from reproalign.common.files import sha256_json, write_text

QuestionId = int | str


@dataclass(frozen=True)
class Question:
    """One question: what the user says, turn by turn.

    Attributes:
        id: ``question_id``.
        category: decides the temperature, and whether the judge sees a reference answer.
        turns: the user's.
        reference: right answers by turn; empty if the file has none.
    """

    id: QuestionId
    category: str
    turns: tuple[str, ...]
    reference: tuple[str, ...] = ()


@dataclass(frozen=True)
class CandidateAnswer:
    """One candidate: the assistant's turns, under the index that the file gives it."""

    index: int
    turns: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """A model's answers to one question, made at ``tstamp`` (Unix time); FastChat's judge reads the first choice."""

    question_id: QuestionId
    answer_id: str
    model_id: str
    choices: tuple[CandidateAnswer, ...]
    tstamp: float

    def line(self) -> str:
        """Return the line of an answer file."""
        row = {
            "question_id": self.question_id,
            "answer_id": self.answer_id,
            "model_id": self.model_id,
            "choices": [{"index": choice.index, "turns": list(choice.turns)} for choice in self.choices],
            "tstamp": self.tstamp,
        }
        return json.dumps(row, ensure_ascii=False) + "\n"


def make_answer(question: Question, model_id: str, candidates: Sequence[Sequence[str]]) -> Answer:
    """Return the answer to a question; its id is made from what it holds, so that a repeated run repeats it."""
    choices = tuple(CandidateAnswer(index, tuple(turns)) for index, turns in enumerate(candidates))
    digest = sha256_json([question.id, model_id, [choice.turns for choice in choices]])
    return Answer(question.id, digest[:22], model_id, choices, time.time())


def read_questions(path: str, key: str = "questions") -> list[Question]:
    """Read a question file: ``question_id``, ``category``, ``turns`` and, where there is one, ``reference``.

    Raises:
        UserError: naming the line that is none, or repeats an id.
    """
    questions: dict[QuestionId, Question] = {}
    for row in read_local(local_path(path, key=key)):
        values = row.values
        wanted = "question_id (number or text), category (text) and turns (a list of texts) are needed"
        turns, reference = _texts(values.get("turns")), _texts(values.get("reference") or [])
        if row.problem or not _is_id(values.get("question_id")) or not isinstance(values.get("category"), str):
            raise UserError(f"{row.place}: {row.problem or wanted}")
        if not turns or not all(turn.strip() for turn in turns) or reference is None:
            raise UserError(f"{row.place}: {wanted}; turns must not be empty, reference is a list of texts")
        question = Question(values["question_id"], values["category"], turns, reference)
        if question.id in questions:
            raise UserError(
                f"{row.place}: question_id {question.id} is there twice; give each question an id of its own"
            )
        questions[question.id] = question
    return list(questions.values())


def read_answers(path: str, questions: Sequence[Question], key: str = "answers") -> dict[QuestionId, Answer]:
    """Read the answers to ``questions``; of several lines with one ``question_id`` the last counts, as in FastChat.

    Raises:
        UserError: for a line that is no answer, and for a question without one.
    """
    known = {question.id: question for question in questions}
    answers = {}
    for row in read_local(local_path(path, key=key)):
        answer = parse_answer(row)
        if answer.question_id in known:
            check_turns(answer, known[answer.question_id], row.place)
            answers[answer.question_id] = answer
    missing = [str(question.id) for question in questions if question.id not in answers]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"{key}={path}: no answer to question {missing[0]}{more}; give a file with all of them")
    return {question.id: answers[question.id] for question in questions}


def parse_answer(row: Row) -> Answer:
    """Return the answer in a row of an answer file.

    Raises:
        UserError: naming the row if it is none.
    """
    values = row.values
    given = values.get("choices")
    found = [_choice(place, choice) for place, choice in enumerate(given)] if isinstance(given, list) else []
    if row.problem or not _is_id(values.get("question_id")) or not found or None in found:
        wanted = "question_id, model_id and choices (each with turns, a list of texts) are needed"
        raise UserError(f"{row.place}: {row.problem or wanted}")
    answer_id, model_id = (str(values.get(name, "")) for name in ("answer_id", "model_id"))
    stamp = values.get("tstamp")
    choices = tuple(choice for choice in found if choice is not None)
    return Answer(values["question_id"], answer_id, model_id, choices, stamp if isinstance(stamp, float) else 0.0)


def check_turns(answer: Answer, question: Question, place: str) -> None:
    """Refuse an answer with another number of turns than its question.

    Raises:
        UserError: naming the place.
    """
    for choice in answer.choices:
        if len(choice.turns) != len(question.turns):
            raise UserError(
                f"{place}: choice {choice.index} has {len(choice.turns)} turns, question {question.id} has "
                f"{len(question.turns)}; give answers to these questions"
            )


def _choice(place: int, value: Any) -> CandidateAnswer | None:
    turns = _texts(value.get("turns")) if isinstance(value, dict) else None
    if turns is None:
        return None
    index = value.get("index", place)
    return CandidateAnswer(index if isinstance(index, int) else place, turns)


def _texts(value: Any) -> tuple[str, ...] | None:
    """Return a list of texts as a tuple; None if it is none."""
    fits = isinstance(value, list) and all(isinstance(text, str) for text in value)
    return tuple(value) if fits else None


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def write_answers(path: Path, answers: Sequence[Answer]) -> None:
    """Write an answer file, whole or not at all."""
    write_text(path, "".join(answer.line() for answer in answers))
