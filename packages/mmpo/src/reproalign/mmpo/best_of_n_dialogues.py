"""Best-of-n on MT-Bench's questions, as the authors ran it (ERRATA, F2).

Candidates have two turns, the second after the candidate's own first; the temperature belongs to the category, so that
half of the questions are answered greedily. A reward is read after each turn, on the dialogue so far; a candidate's is
the mean of the two. The best of n is the first of the best among the first n, written whole as FastChat's answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import numpy as np
from numpy.typing import NDArray

from reproalign.common.data.fastchat import (
    Answer,
    Question,
    QuestionId,
    read_answers,
    read_questions,
    write_answers,
)
from reproalign.common.errors import UserError
from reproalign.common.files import sha256_json, write_text
from reproalign.common.generation.dialogues import DialogueRules, answer_questions, dialogue
from reproalign.common.generation.samplers import ENGINES
from reproalign.common.generation.samples import Sampled
from reproalign.common.models.identify import model_label
from reproalign.common.records import Run
from reproalign.common.verbs.mt_bench import VLLM_CHUNK
from reproalign.common.verbs.score import score_responses
from reproalign.mmpo.best_of_n_config import BestOfNConfig
from reproalign.mmpo.best_of_n_rules import PROXY, Judged, Pool, policy_rules, sampling_backend

Turns = tuple[str, ...]


def judge_dialogues(config: BestOfNConfig, counts: Sequence[int], models: Sequence[Judged], run: Run) -> Pool:
    """Read or sample the candidates of every question, and score them after each turn.

    Raises:
        UserError: for files that are none of FastChat's, or too few candidates.
    """
    assert config.questions is not None
    questions = read_questions(config.questions)[: config.max_prompts]
    content = [asdict(question) for question in questions]
    run.add_fingerprint("data", "questions", sha256_json(content), path=config.questions, rows=len(questions))
    most = max(counts)
    answers = _given(config, questions, most, run) if config.candidates else _sampled(config, questions, most, run)
    candidates = [[choice.turns for choice in answers[question.id].choices[:most]] for question in questions]
    rows, places = distinct_dialogues(questions, candidates)
    rewards, by_turn = {}, {}
    for judged in models:
        path = run.dir / judged.file
        scored = score_responses(rows, judged.model, judged.rules, path, batch_size=config.batch_size, key=judged.key)
        read = [row.scores[0] for row in scored if row.scores]
        by_turn[judged.key] = [[[read[place] for place in one] for one in own] for own in places]
        rewards[judged.key] = turn_means(by_turn[judged.key])
    _write_rewards(run, answers, by_turn[PROXY])

    def write(n: int, selected: NDArray[np.int64]) -> None:
        chosen = [
            replace(answer, model_id=f"{answer.model_id}-best-of-{n}", choices=(answer.choices[index],))
            for answer, index in zip(answers.values(), selected.tolist(), strict=True)
        ]
        write_answers(run.dir / f"answers-best-of-{n}.jsonl", chosen)

    return Pool(rewards, candidates, write)


def turn_means(rewards: Sequence[Sequence[Sequence[float]]]) -> NDArray[np.float64]:
    """Return the mean over turns of the rewards (questions, candidates, turns): (questions, candidates)."""
    return np.asarray([[np.mean(turns) for turns in own] for own in rewards], dtype=np.float64)


def distinct_dialogues(
    questions: Sequence[Question], candidates: Sequence[Sequence[Turns]]
) -> tuple[list[Sampled], list[list[list[int]]]]:
    """Return every distinct dialogue up to an answer, and where the turns of each candidate are among them.

    Equal candidates, which greedy questions have, are scored once.
    """
    rows: list[Sampled] = []
    seen: dict[tuple[QuestionId, Turns], int] = {}
    places = []
    for question, own in zip(questions, candidates, strict=True):
        found = []
        for turns in own:
            parts = [turns[: turn + 1] for turn in range(len(turns))]
            for part in parts:
                if (question.id, part) not in seen:
                    seen[question.id, part] = len(rows)
                    prompt = dialogue(question.turns, part[:-1])
                    rows.append(Sampled(f"{question.id}/{len(rows)}", prompt, [part[-1]]))
            found.append([seen[question.id, part] for part in parts])
        places.append(found)
    return rows, places


def _given(config: BestOfNConfig, questions: Sequence[Question], most: int, run: Run) -> Mapping[QuestionId, Answer]:
    assert config.candidates is not None
    answers = read_answers(config.candidates, questions, "candidates")
    for answer in answers.values():
        if len(answer.choices) < most:
            raise UserError(
                f"candidates={config.candidates}: question {answer.question_id} has {len(answer.choices)} candidates, "
                f"and n asks for {most}; lower n"
            )
    digest = sha256_json([[choice.turns for choice in answer.choices] for answer in answers.values()])
    run.add_fingerprint("data", "candidates", digest, path=config.candidates, rows=len(answers))
    return answers


def _sampled(config: BestOfNConfig, questions: Sequence[Question], most: int, run: Run) -> Mapping[QuestionId, Answer]:
    model, sampling = policy_rules(config, most)
    rules = DialogueRules(replace(sampling, stop=None), config.temperatures, config.seed)
    backend = sampling_backend(config, model, run)
    answers = answer_questions(
        questions,
        run.dir / "candidates.jsonl",
        lambda: ENGINES[backend](model, "chat"),
        rules,
        model_id=model_label(config.policy.name),
        at_once=VLLM_CHUNK if backend == "vllm" else config.batch_size,
    )
    run.keep()
    return answers


def _write_rewards(
    run: Run, answers: Mapping[QuestionId, Answer], rewards: Sequence[Sequence[Sequence[float]]]
) -> None:
    """Write the rewards of each turn of each candidate, in the shape of an answer file."""
    lines = []
    for answer, own in zip(answers.values(), rewards, strict=True):
        pairs = zip(answer.choices, own, strict=False)
        choices = [{"index": choice.index, "turns": list(turns)} for choice, turns in pairs]
        row = {"question_id": answer.question_id, "answer_id": answer.answer_id, "model_id": answer.model_id}
        lines.append(json.dumps({**row, "choices": choices}, ensure_ascii=False) + "\n")
    write_text(run.dir / "rewards.jsonl", "".join(lines))
