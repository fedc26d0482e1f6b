"""Dialogues of several turns: a model answers a user's turns one by one, each with its own answers before it.

That is how FastChat makes the answers of MT-Bench: the temperature belongs to a question's category, and a candidate's
second turn goes on from its own first one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reproalign.common.config.model import LoadedModelConfig
from reproalign.common.console import track
from reproalign.common.data.fastchat import (
    Answer,
    Question,
    QuestionId,
    check_turns,
    make_answer,
    parse_answer,
    write_answers,
)
from reproalign.common.data.reading import Row
from reproalign.common.data.records import Message
from reproalign.common.errors import UserError
from reproalign.common.generation.noise import stream_seed
from reproalign.common.generation.rules import SamplingRules
from reproalign.common.generation.sampling import Engine, Sampler
from reproalign.common.journal import growing, recover_lines, sums_of
from reproalign.common.models.kind import with_gemma_numerics

# FastChat's, by category; 0 takes the likeliest token.
TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
    "arena-hard-200": 0.0,
}
OTHER_TEMPERATURE = 0.7  # of a category that FastChat has no temperature for
GREEDY = 1e-4  # below it FastChat decodes greedily


@dataclass(frozen=True)
class DialogueRules:
    """How questions of several turns are answered.

    Attributes:
        sampling: of one answer; ``n`` is the number of candidates, ``temperature`` and ``own_noise`` are not read.
        temperatures: by category, before :data:`TEMPERATURES`.
        seed: of candidate 0; a candidate's is this plus its index.

    Raises:
        UserError: for a temperature below 0.
    """

    sampling: SamplingRules
    temperatures: Mapping[str, float]
    seed: int = 0

    def __post_init__(self) -> None:
        self.sampling.check()

    def temperature(self, category: str) -> float:
        """Return the temperature of a category's answers; 0: greedy."""
        value = self.temperatures.get(category, TEMPERATURES.get(category, OTHER_TEMPERATURE))
        return 0.0 if value < GREEDY else float(value)

    def of(self, temperature: float) -> SamplingRules:
        """Return the rules of one answer: every drawn one has noise of its own, whatever shares its batch."""
        return replace(self.sampling, n=1, temperature=temperature, own_noise=temperature > 0)


def ask_by(
    template: str, model: LoadedModelConfig, system_message: str | None
) -> tuple[LoadedModelConfig, dict[str, Any]]:
    """Return the model with the chat template that it is asked by, and the fields of SamplingRules that go with it.

    ``chat`` is the model's own (or ``chat_template``), with ``system_message``. ``gemma-custom`` is the one with which
    the authors of MMPO asked: the header of a system turn that is not closed, and the tokenizer's own BOS before the
    template's. A Gemma 1 then computes as in the transformers that they trained it with, unless ``model`` says
    otherwise (:func:`reproalign.common.models.kind.with_gemma_numerics`).

    Raises:
        UserError: for options that the template leaves no place for.
    """
    if template == "chat":
        return model, {"system_message": system_message, "special_tokens": "template"}
    given = "chat_template" if model.chat_template else "system_message" if system_message is not None else None
    if given:
        raise UserError(f"template={template} has a chat template and a system turn of its own; leave {given} out")
    asked = replace(with_gemma_numerics(model, "transformers-4.38"), chat_template="gemma_custom")
    return asked, {"system_message": None, "special_tokens": "own"}


def answer_questions(
    questions: Sequence[Question],
    path: Path,
    load: Callable[[], Engine],
    rules: DialogueRules,
    *,
    model_id: str,
    at_once: int,
) -> dict[QuestionId, Answer]:
    """Return n candidates' turns to each question; ``path`` grows question by question, FastChat's answer file.

    Questions of one temperature share batches, which are the same for every run of these questions; what ``path`` holds
    of whole batches is not answered again, so that interruptions change nothing. Of a temperature of 0 one candidate
    is made and repeated.

    Args:
        questions: in the order of the file.
        path: in the end in the order of the questions.
        load: makes the engine; called only if there is something left to do.
        rules: how they are answered.
        model_id: as the file names the model.
        at_once: dialogues that are gone on with at once.

    Raises:
        UserError: if ``path`` holds other answers.
    """
    n = rules.sampling.n
    batches = list(_batches(questions, rules, at_once))
    answers = _kept(path, questions, n)
    todo = [batch for batch in batches if any(question.id not in answers for question in batch)]
    for question in (question for batch in todo for question in batch):  # a batch is answered as a whole
        answers.pop(question.id, None)
    if todo:
        sums_of(path).unlink(missing_ok=True)
        write_answers(path, list(answers.values()))
        recover_lines(path)  # makes their sums anew
        engine = load()
        places = {question.id: place for place, question in enumerate(questions)}
        with growing(path) as write:
            for batch in track(todo, "answering"):
                temperature = rules.temperature(batch[0].category)
                sampler = engine(rules.of(temperature))
                count = n if temperature > 0 else 1
                seeds = [
                    [stream_seed(rules.seed + candidate, places[question.id]) for candidate in range(count)]
                    for question in batch
                ]
                candidates = _candidates(sampler, batch, seeds, at_once)
                for question, found in zip(batch, candidates, strict=True):
                    answers[question.id] = make_answer(question, model_id, found if count == n else found * n)
                write("".join(answers[question.id].line() for question in batch))
        sums_of(path).unlink()  # the lines change places
        write_answers(path, [answers[question.id] for question in questions])
    return {question.id: answers[question.id] for question in questions}


def _batches(questions: Sequence[Question], rules: DialogueRules, at_once: int) -> Iterator[list[Question]]:
    for temperature in dict.fromkeys(rules.temperature(question.category) for question in questions):
        group = [question for question in questions if rules.temperature(question.category) == temperature]
        size = max(1, at_once // rules.sampling.n) if temperature > 0 else at_once
        yield from (group[start : start + size] for start in range(0, len(group), size))


def _candidates(
    sampler: Sampler, questions: Sequence[Question], seeds: Sequence[Sequence[int]], at_once: int
) -> list[list[list[str]]]:
    """Return the turns of each candidate of each question; its turn t draws with ``stream_seed(seed, t)``."""
    rows = [(question, seed) for question, own in zip(questions, seeds, strict=True) for seed in own]
    found: list[list[str]] = [[] for _ in rows]
    for turn in range(max(len(question.turns) for question in questions)):
        live = [index for index, (question, _) in enumerate(rows) if turn < len(question.turns)]
        for start in range(0, len(live), at_once):
            part = live[start : start + at_once]
            ids = [sampler.encode(dialogue(rows[index][0].turns, found[index])) for index in part]
            texts = sampler.generate(ids, [stream_seed(rows[index][1], turn) for index in part])
            for index, (text,) in zip(part, texts, strict=True):
                found[index].append(text)
    whole = iter(found)
    return [[next(whole) for _ in own] for own in seeds]


def dialogue(turns: Sequence[str], answers: Sequence[str]) -> list[Message]:
    """Return the messages of a dialogue up to the last answer, and the user's next turn if there is one."""
    messages: list[Message] = []
    for number, turn in enumerate(turns[: len(answers) + 1]):
        messages.append({"role": "user", "content": turn})
        messages += [{"role": "assistant", "content": answers[number]}] if number < len(answers) else []
    return messages


def _kept(path: Path, questions: Sequence[Question], n: int) -> dict[QuestionId, Answer]:
    known = {question.id: question for question in questions}
    answers: dict[QuestionId, Answer] = {}
    for number, line in enumerate(recover_lines(path), start=1):
        place = f"{path} line {number}"
        try:
            answer = parse_answer(Row(place, json.loads(line)))
        except (ValueError, AttributeError) as error:
            raise UserError(f"{place}: not an answer of this run; choose another output_dir") from error
        if answer.question_id not in known or len(answer.choices) != n:
            raise UserError(f"{place}: not an answer of this run; choose another output_dir")
        check_turns(answer, known[answer.question_id], place)
        answers[answer.question_id] = answer
    return answers
