"""The verb ``mt-bench``: answers of two turns, single-answer grading by an endpoint's model, scores with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from reproalign.common.config.launch import LaunchConfig
from reproalign.common.console import result_console, say
from reproalign.common.data.fastchat import Answer, Question, QuestionId, read_answers, read_questions
from reproalign.common.errors import UserError
from reproalign.common.evaluation.mtbench import HIGHEST, LOWEST, UNREADABLE, read_judgments, summarize
from reproalign.common.evaluation.mtbench_report import draw_scores, score_metrics, score_table, scores_csv
from reproalign.common.files import sha256_file, sha256_json, write_json, write_text
from reproalign.common.generation.dialogues import DialogueRules, answer_questions, ask_by
from reproalign.common.generation.rules import SamplingRules
from reproalign.common.generation.samplers import ENGINES, choose_backend
from reproalign.common.invocation import Invocation
from reproalign.common.judging.ask import keeping_answers
from reproalign.common.judging.config import check_one_judge
from reproalign.common.judging.endpoint import EndpointError, check_endpoint
from reproalign.common.judging.single import (
    WITH_REFERENCE,
    check_gradable,
    collect_judgments,
    has_judgments,
    references_for,
    requests_for,
)
from reproalign.common.judging.single_prompts import NAMES, OWN_PROMPTS, JudgePrompt, Kind, prompts_digest, read_prompts
from reproalign.common.models.identify import model_label, used_weights
from reproalign.common.models.kind import check_language_model
from reproalign.common.records import Run
from reproalign.common.verbs.mt_bench_config import MTBenchConfig

ANSWERS, JUDGMENTS = "answers.jsonl", "judgments.jsonl"
VLLM_CHUNK = 256  # dialogues that vLLM gets at once


def mt_bench(config: MTBenchConfig, invocation: Invocation) -> None:
    """Answer the questions, have each turn rated, and report scores by category and turn.

    ``answers.jsonl`` grows batch by batch and ``judgments.jsonl`` judgment by judgment, both in FastChat's formats; an
    interrupted run goes on where it stopped. ``results.csv``, ``results.json`` and ``plots/mt-bench.png`` are made of
    the judgments. Answers alone are made without ``endpoint.model``; given ``answers`` or ``judgments`` take the place
    of what would be made.

    Raises:
        UserError: for anything wrong in the options and the files, before a model is loaded or a judge asked.
    """
    _check(config)
    questions = read_questions(config.questions)[: config.max_questions] if config.questions else []
    with keeping_answers(), Run.open(invocation) as run:
        if questions:
            content = [asdict(question) for question in questions]
            run.add_fingerprint("data", "questions", sha256_json(content), path=config.questions, rows=len(questions))
        if config.judgments:
            model_id, rows = _given_judgments(config, questions, run)
        else:
            model_id, rows = _graded(config, questions, run)
        if rows:
            _report(config, {question.id: question.category for question in questions}, rows, model_id, run)
        say(f"answers, judgments, scores and plots: {run.dir}")


def dialogue_rules(config: MTBenchConfig, own: Mapping[str, Any]) -> DialogueRules:
    """Return how the questions are answered; ``own`` are the fields that the template decides.

    Raises:
        UserError: for options that nothing can be answered with.
    """
    sampling = SamplingRules(
        max_new_tokens=config.max_new_tokens,
        top_p=config.top_p,
        top_k=config.top_k,
        batch_size=config.batch_size,
        stop=None,
        **own,
    )
    return DialogueRules(sampling, config.temperatures, config.seed)


def _check(config: MTBenchConfig) -> None:
    check_one_judge({"judgments": config.judgments, "endpoint.model": config.endpoint.model})
    check_one_judge({"judgments": config.judgments, "answers": config.answers})
    check_endpoint(config.endpoint)
    if not config.questions and not config.judgments:
        raise UserError("questions is not set; give FastChat's question file (question_id, category, turns)")
    given = "answers" if config.answers else "judgments" if config.judgments else None
    if given and config.model.name:
        raise UserError(f"{given} is given and so is model.name, which would not be asked; leave one of them out")
    if not given and not config.model.name:
        raise UserError("model.name is not set; name the model that answers, or give its answers as answers=FILE")
    if config.answers and not config.endpoint.model:
        raise UserError("answers is given and no judge to grade them; set endpoint.model")
    for key in ("prompts", "references"):
        if getattr(config, key) and not config.endpoint.model:
            raise UserError(f"{key} is for a judge, and none is asked; set endpoint.model, or leave {key} out")


def _graded(config: MTBenchConfig, questions: Sequence[Question], run: Run) -> tuple[str, list[dict[str, Any]]]:
    """Return the model's name and the judgments on its answers; none of them if there is no judge."""
    check_gradable(questions)
    prompts = read_prompts(config.prompts) if config.prompts else OWN_PROMPTS
    references = {}
    if config.endpoint.model:
        needing = [question for question in questions if question.category in WITH_REFERENCE]
        given = read_answers(config.references, needing, "references") if config.references and needing else None
        references = references_for(questions, given)
        _record_judge(config, prompts, references, run)
    answers = _given_answers(config, questions, run) if config.answers else _answers(config, questions, run)
    model_id = config.model_id or next(iter(answers.values())).model_id
    if not config.endpoint.model:
        say(f"{len(answers)} answers: {run.dir / ANSWERS}; grade them with endpoint.model")
        return model_id, []
    path = run.dir / JUDGMENTS
    try:
        return model_id, collect_judgments(
            config.endpoint, requests_for(questions, answers, references, prompts), path, model_id
        )
    except EndpointError as error:
        if has_judgments(path) or not config.answers:
            raise
        raise UserError(str(error)) from error  # there is nothing to keep


def _record_judge(
    config: MTBenchConfig,
    prompts: Mapping[Kind, JudgePrompt],
    references: Mapping[QuestionId, Sequence[str]],
    run: Run,
) -> None:
    """Put into the record who grades, how it is asked, and what it is given."""
    digest, source = prompts_digest(prompts), config.prompts or "reproalign"
    run.set(
        "judge",
        {
            "model": config.endpoint.model,
            "base_url": config.endpoint.base_url,
            "request": config.endpoint.request,
            "prompts": {"of": source, "names": [prompts[kind].name for kind in NAMES], "sha256": digest},
            "references": config.references or "questions",
        },
    )
    run.add_fingerprint("data", "prompts", digest, path=source)
    given = [[str(name), list(turns)] for name, turns in references.items()]
    run.add_fingerprint("data", "references", sha256_json(given), path=config.references or "questions")


def _answers(config: MTBenchConfig, questions: Sequence[Question], run: Run) -> dict[QuestionId, Answer]:
    check_language_model(config.model)
    model, own = ask_by(config.template, config.model, config.system_message)
    rules = dialogue_rules(config, own)
    backend = choose_backend(config.backend, LaunchConfig(), 1, model)
    used_weights(run, "policy", config.model.name, config.model.revision, backend=backend)
    answers = answer_questions(
        questions,
        run.dir / ANSWERS,
        lambda: ENGINES[backend](model, "chat"),
        rules,
        model_id=config.model_id or model_label(config.model.name),
        at_once=VLLM_CHUNK if backend == "vllm" else config.batch_size,
    )
    texts = [turn for answer in answers.values() for choice in answer.choices for turn in choice.turns]
    made = sha256_json([answer.choices[0].turns for answer in answers.values()])
    run.add_fingerprint("data", "answers", made, made=True, rows=len(answers))
    run.set_metrics({"answers": len(answers), "empty_turns": texts.count("")})
    run.keep()
    return answers


def _given_answers(config: MTBenchConfig, questions: Sequence[Question], run: Run) -> dict[QuestionId, Answer]:
    assert config.answers is not None
    answers = read_answers(config.answers, questions)
    digest = sha256_json([answer.choices[0].turns for answer in answers.values()])
    run.add_fingerprint("data", "answers", digest, path=config.answers, rows=len(answers))
    return answers


def _given_judgments(
    config: MTBenchConfig, questions: Sequence[Question], run: Run
) -> tuple[str, list[dict[str, Any]]]:
    assert config.judgments is not None
    path = Path(config.judgments).expanduser()
    models = read_judgments(path)
    if config.model_id is None and len(models) > 1:
        raise UserError(f"judgments={path} is about {len(models)} models; set model_id to one of {', '.join(models)}")
    model_id = config.model_id or next(iter(models), "")
    rows = [row for row in models.get(model_id, []) if not questions or row["question_id"] in {q.id for q in questions}]
    if not rows:
        known = ", ".join(models) or "no model"
        raise UserError(f"judgments={path}: no judgment of '{model_id}' on these questions; the file is about {known}")
    run.add_fingerprint("data", "judgments", sha256_file(path), path=config.judgments, rows=len(rows))
    return model_id, rows


def _report(
    config: MTBenchConfig,
    categories: Mapping[QuestionId, str],
    rows: Sequence[Mapping[str, Any]],
    model_id: str,
    run: Run,
) -> None:
    scores = summarize(rows, categories, confidence=config.confidence, resamples=config.resamples, seed=config.seed)
    judges = sorted({str(row["judge"]) for row in rows if row.get("judge")})
    outside = sum(row["score"] != UNREADABLE and not LOWEST <= row["score"] <= HIGHEST for row in rows)
    run.set_metrics({**score_metrics(scores), "outside_1_to_10": outside})
    facts = {"model": model_id, "judge": run.record.get("judge"), "judges_of_the_judgments": judges}
    write_json(run.dir / "results.json", {**facts, "scores": [asdict(score) for score in scores]})
    write_text(run.dir / "results.csv", scores_csv(scores))
    draw_scores(scores, f"MT-Bench, {model_id}", run.dir / "plots" / "mt-bench.png")
    result_console().print(score_table(scores, model_id, config.confidence))
