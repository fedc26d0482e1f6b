"""MT-Bench: FastChat's files, answers of two turns, a judge's ratings over a local server, and scores by hand."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from reproalign.common.cli import main
from reproalign.common.config.model import ModelConfig
from reproalign.common.data.fastchat import Question, make_answer, read_answers, read_questions
from reproalign.common.errors import UserError
from reproalign.common.evaluation.mtbench import category_of, summarize
from reproalign.common.generation.asking import prompt_ids
from reproalign.common.generation.dialogues import DialogueRules, answer_questions, ask_by, dialogue
from reproalign.common.generation.rules import SamplingRules
from reproalign.common.generation.sampling import Sampler
from reproalign.common.generation.transformers_engine import transformers_engine
from reproalign.common.judging.single_prompts import FIELDS, NAMES, OWN_PROMPTS, check_fields
from reproalign.common.models.tiny_tokenizers import tiny_tokenizer
from reproalign.common.testing import refusal
from reproalign.common.testing.endpoint import Endpoint, running
from reproalign.common.text.templates import render, set_template

ROWS = [
    {"question_id": 81, "category": "writing", "turns": ["write", "again"]},
    {"question_id": 111, "category": "math", "turns": ["2 + 2?", "+ 1?"], "reference": ["four", "five"]},
    {"question_id": 131, "category": "extraction", "turns": ["list", "sum"]},
    {"question_id": 141, "category": "stem", "turns": ["why", "why then"]},
    {"question_id": 200, "category": "gardening", "turns": ["when"]},
]
QUESTIONS = [Question(row["question_id"], row["category"], tuple(row["turns"])) for row in ROWS]


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


@pytest.fixture
def questions(tmp_path) -> Path:
    return write(tmp_path / "question.jsonl", ROWS)


@pytest.fixture
def answers(tmp_path) -> Path:
    made = [make_answer(question, "ours", [[f"answer to {turn}" for turn in question.turns]]) for question in QUESTIONS]
    path = tmp_path / "answers-given.jsonl"
    path.write_text("".join(answer.line() for answer in made))
    return path


@pytest.fixture
def fails(capsys):
    """Run ``reproalign mt-bench`` with words that must fail; return its one line of error."""
    return lambda *words: refusal("reproalign", main, ["mt-bench", *words], capsys)


@pytest.fixture
def judge(monkeypatch):
    """Rates first turns 4 and second ones 8, without a number about extraction."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def reply(request: dict[str, Any]) -> str:
        text = request["messages"][-1]["content"]
        return "no idea" if "list" in text else f"[3]? No: [[{8 if 'again' in text or '+ 1' in text else 4}]]"

    with running(Endpoint(reply)) as endpoint:
        yield endpoint


# what a model is asked with


def test_the_template_of_the_authors_opens_a_system_turn_and_the_tokenizer_puts_a_second_bos():
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    model, own = ask_by("gemma-custom", ModelConfig(name="x"), None)
    set_template(tokenizer, model.chat_template)
    turns = dialogue(["Q1", "Q2"], ["A1"])
    text = (
        "<s><|im_start|>system\n<|im_start|>user\nQ1<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n"
        "<|im_start|>user\nQ2<|im_end|>\n<|im_start|>assistant\n"
    )
    assert render(tokenizer, turns, generation=True) == text
    ids = prompt_ids(tokenizer, turns, SamplingRules(**own))
    assert ids[:2] == [tokenizer.bos_token_id] * 2
    assert ids[1:] == prompt_ids(tokenizer, turns, SamplingRules())
    for words in ({"chat_template": "chatml"}, {}):
        with pytest.raises(UserError, match=f"leave {'chat_template' if words else 'system_message'} out"):
            ask_by("gemma-custom", ModelConfig(name="x", **words), None if words else "auto")


def test_an_empty_system_turn_is_put_before_the_prompt_on_request():
    tokenizer = tiny_tokenizer()
    turns = dialogue(["Q"], [])
    plain, system = (prompt_ids(tokenizer, turns, SamplingRules(system_message=value)) for value in (None, "auto"))
    assert tokenizer.decode(system) == "<|im_start|>system\n<|im_end|>\n" + tokenizer.decode(plain)


# answers


class Model:
    """Answers with what it was given: the dialogue, the temperature and the seed."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, int]] = []

    def __call__(self, rules: SamplingRules) -> Sampler:
        assert rules.n == 1
        assert rules.own_noise == (rules.temperature > 0)
        prompts: dict[int, str] = {}

        def encode(messages: list[dict[str, str]]) -> list[int]:
            prompts[len(prompts)] = "|".join(message["content"] for message in messages)
            return [len(prompts) - 1]

        def generate(rows: Sequence[list[int]], seeds: Any) -> list[list[str]]:
            self.calls.append((rules.temperature, len(rows)))
            noise = [seed % 997 if rules.temperature else 0 for seed in seeds]
            return [[f"({prompts[ids[0]]};{own})"] for ids, own in zip(rows, noise, strict=True)]

        return Sampler(encode, generate)


def answer(path: Path, model: Model, *, n: int = 1, at_once: int = 2, **more: Any) -> list[list[tuple[str, ...]]]:
    rules = DialogueRules(SamplingRules(n=n), {}, **more)
    found = answer_questions(QUESTIONS, path, lambda: model, rules, model_id="m", at_once=at_once)
    assert [row["question_id"] for row in lines(path)] == [question.id for question in QUESTIONS]
    return [[choice.turns for choice in found[question.id].choices] for question in QUESTIONS]


def test_the_second_turn_goes_on_from_a_candidate_s_own_first(tmp_path):
    for own in answer(tmp_path / "a.jsonl", Model(), n=3):
        for turns in own:
            assert len(turns) == 1 or turns[0] in turns[1]


def test_temperatures_are_fastchat_s_and_greedy_candidates_are_made_once(tmp_path):
    model = Model()
    found = answer(tmp_path / "a.jsonl", model, n=4, at_once=8)
    rows: dict[float, int] = {}
    for temperature, count in model.calls:
        rows[temperature] = rows.get(temperature, 0) + count
    assert rows == {0.7: 12, 0.0: 4, 0.1: 8}  # writing twice and an unknown category once; math, extraction; stem
    equal = [len(set(own)) == 1 for own in found]
    assert equal == [False, True, True, False, False]
    assert DialogueRules(SamplingRules(), {"writing": 0.0}).temperature("writing") == 0


def test_a_candidate_depends_on_its_index_alone_not_on_batches_or_their_number(tmp_path):
    few = answer(tmp_path / "few.jsonl", Model(), n=2, at_once=1)
    many = answer(tmp_path / "many.jsonl", Model(), n=5, at_once=7)
    assert [own[:2] for own in many] == few
    later = answer(tmp_path / "later.jsonl", Model(), n=2, seed=1)
    assert [own[0] for own in later] == [own[1] for own in many]  # seed 1 begins with candidate 1


def test_interruptions_change_nothing_but_whole_batches_are_kept(tmp_path):
    whole = answer(tmp_path / "whole.jsonl", Model())
    kept = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    part = tmp_path / "part.jsonl"
    part.write_text(kept[0] + kept[4] + kept[1] + kept[2][:30])  # in the order of the batches; the last line is torn
    model = Model()
    assert answer(part, model) == whole
    assert sum(count for _, count in model.calls) == 6  # math and extraction share a batch; stem
    assert lines(part)[0] == json.loads(kept[0])
    part.write_text(kept[0].replace('"question_id": 81', '"question_id": 82'))
    with pytest.raises(UserError, match="not an answer of this run; choose another output_dir"):
        answer(part, Model())


def test_a_real_model_answers_alike_in_any_batch():
    engine = transformers_engine(ModelConfig(name="tiny:llama"), "chat")
    sampler = engine(DialogueRules(SamplingRules(max_new_tokens=6), {}).of(0.7))
    rows = [sampler.encode(dialogue([text], [])) for text in ("hello", "two plus two", "the dog sleeps in the sun")]
    seeds = [7, 3, 7]
    assert sampler.generate(rows, seeds) == [
        sampler.generate([row], [seed])[0] for row, seed in zip(rows, seeds, strict=True)
    ]
    greedy = engine(DialogueRules(SamplingRules(max_new_tokens=6), {}).of(0.0))
    assert greedy.generate(rows, seeds) == greedy.generate(rows, 0)


# grading


def test_a_run_from_questions_to_scores(tmp_path, questions, judge, capsys):
    folder = tmp_path / "out"
    words = [f"questions={questions}", "model.name=tiny:llama", "max_new_tokens=4", "batch_size=3"]
    assert main(["mt-bench", *words, *judge.words, f"output_dir={folder}"]) == 0
    rows = lines(folder / "answers.jsonl")
    assert [row.keys() for row in rows] == [{"question_id", "answer_id", "model_id", "choices", "tstamp"}] * 5
    assert {row["model_id"] for row in rows} == {"tiny:llama"}
    found = record(folder)
    assert found["metrics"]["ratings"] == 7
    assert found["metrics"]["unreadable"] == 2
    assert found["judge"]["request"] == {"temperature": 0.0, "max_tokens": 2048}
    assert found["judge"]["prompts"]["of"] == "reproalign"
    assert {"policy"} == found["fingerprints"]["weights"].keys()
    assert (folder / "plots" / "mt-bench.png").read_bytes().startswith(b"\x89PNG")
    assert "no idea" not in capsys.readouterr().out


def test_each_turn_is_rated_with_the_prompt_of_its_kind(tmp_path, questions, answers, judge):
    folder = tmp_path / "out"
    words = [f"questions={questions}", f"answers={answers}"]
    assert main(["mt-bench", *words, *judge.words, f"output_dir={folder}"]) == 0
    rows = {(row["question_id"], row["turn"]): row for row in lines(folder / "judgments.jsonl")}
    assert rows.keys() == {(row["question_id"], turn + 1) for row in ROWS for turn in range(len(row["turns"]))}
    names = {key: row["judge"] for key, row in rows.items()}
    assert names[81, 1] == ["m", "reproalign-single-v1"]
    assert names[111, 1] == ["m", "reproalign-single-math-v1"]
    assert names[81, 2] == ["m", "reproalign-single-v1-multi-turn"]
    assert names[111, 2] == ["m", "reproalign-single-math-v1-multi-turn"]
    assert {key for key, row in rows.items() if "four" in row["user_prompt"]} == {(111, 1), (111, 2)}
    assert "answer to again" not in rows[81, 1]["user_prompt"]
    assert all(text in rows[81, 2]["user_prompt"] for text in ("write", "answer to write", "again", "answer to again"))
    assert {key: row["score"] for key, row in rows.items()} == {
        **{(81, 1): 4, (81, 2): 8, (111, 1): 4, (111, 2): 8, (131, 1): -1, (131, 2): -1},
        **{(141, 1): 4, (141, 2): 4, (200, 1): 4},
    }
    metrics = record(folder)["metrics"]
    assert metrics["mt_bench"] == pytest.approx(36 / 7)
    assert (metrics["turn_1"], metrics["turn_2"]) == (4.0, pytest.approx(20 / 3))
    assert metrics["categories"]["extraction"] is None
    with (folder / "results.csv").open() as stream:
        table = {(row["category"], row["turn"]): row for row in csv.DictReader(stream)}
    assert float(table["math", "both"]["mean"]) == 6.0
    assert table["extraction", "both"]["unreadable"] == "2"
    result = json.loads((folder / "results.json").read_text())
    assert (result["model"], result["judge"]["model"]) == ("ours", "m")
    roles = [message["role"] for message in judge.requests[0]["messages"]]
    assert roles == ["system", "user"]


def test_the_published_prompts_and_references_are_read_from_the_user_s_files(
    tmp_path, questions, answers, judge, fails
):
    rows = [
        {
            "name": name,
            "system_prompt": "",
            "prompt_template": f"{name}: " + " ".join(f"{{{field}}}" for field in FIELDS[kind]),
        }
        for kind, name in NAMES.items()
    ]
    prompts = write(tmp_path / "judge_prompts.jsonl", rows)
    references = write(
        tmp_path / "gpt-4.jsonl",
        [{"question_id": 111, "model_id": "gpt-4", "choices": [{"index": 0, "turns": ["IV", "V {4}"]}]}],
    )
    words = [f"questions={questions}", f"answers={answers}", f"prompts={prompts}", *judge.words]
    folder = tmp_path / "out"
    assert main(["mt-bench", *words, f"references={references}", f"output_dir={folder}"]) == 0
    found = {(row["question_id"], row["turn"]): row["user_prompt"] for row in lines(folder / "judgments.jsonl")}
    assert found[81, 1] == "single-v1: write answer to write"
    assert found[111, 2] == "single-math-v1-multi-turn: 2 + 2? + 1? answer to 2 + 2? answer to + 1? IV V {4}"
    assert [message["role"] for message in judge.requests[0]["messages"]] == ["user"]
    facts = record(folder)["judge"]["prompts"]
    assert facts["names"] == list(NAMES.values())
    assert len(facts["sha256"]) == 64
    write(prompts, rows[:-1])
    assert "no prompt 'single-math-v1-multi-turn'" in fails(*words, f"output_dir={tmp_path / 'no'}")
    write(prompts, [{**rows[0], "prompt_template": "{question} {reply}"}, *rows[1:]])
    assert "'single-v1' has no field {answer}" in fails(*words, f"output_dir={tmp_path / 'no'}")
    assert not (tmp_path / "no").exists()


def test_judgments_survive_an_endpoint_that_goes_down(tmp_path, questions, answers, judge, fails, monkeypatch):
    folder = tmp_path / "out"
    words = [
        f"questions={questions}",
        f"answers={answers}",
        *judge.words,
        "endpoint.parallel=2",
        f"output_dir={folder}",
    ]
    judge.failures, judge.limit = [503, 429], 3  # passing ones are asked again
    error = fails(*words)
    assert "status 401" in error
    assert "environment variable OPENAI_API_KEY" in error
    assert "the same command goes on" in error
    assert len(lines(folder / "judgments.jsonl")) == 3
    with (folder / "judgments.jsonl").open("a") as stream:
        stream.write('{"question_id": 1')  # a line that was not written to its end
    judge.limit, judge.requests = 10**9, []
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    assert main(["mt-bench", *words]) == 0
    assert len(judge.requests) == 9 - 3
    assert judge.keys[-1] == "Bearer secret"
    assert "secret" not in "".join(path.read_text() for path in folder.glob("*.json*"))
    assert record(folder)["metrics"]["mt_bench"] == pytest.approx(36 / 7)


def test_answers_survive_a_judge_that_never_answers(tmp_path, questions, judge, fails, answers):
    words = [f"questions={questions}", *judge.words]
    judge.body = b"<html>"
    given = [f"answers={answers}", f"output_dir={tmp_path / 'given'}"]
    assert "OpenAI-compatible?" in fails(*words, *given)
    assert not (tmp_path / "given").exists()  # there was nothing to keep
    made = ["model.name=tiny:llama", "max_new_tokens=3", f"output_dir={tmp_path / 'made'}"]
    assert "the same command goes on" in fails(*words, *made)
    kept = (tmp_path / "made" / "answers.jsonl").read_text()
    judge.body = None
    assert main(["mt-bench", *words, *made]) == 0
    assert (tmp_path / "made" / "answers.jsonl").read_text() == kept


def test_existing_judgments_are_reported(tmp_path, questions, fails):
    rows = [
        {"question_id": 81, "model": "a", "turn": 1, "score": 7, "judge": ["gpt-4", "single-v1"]},
        {"question_id": 81, "model": "a", "turn": 2, "judgment": "[[4]]"},
        {"question_id": 111, "model": "a", "turn": 1, "score": -1},
        {"question_id": 81, "model": "b", "turn": 1, "score": 1},
    ]
    words = [f"judgments={write(tmp_path / 'gpt-4_single.jsonl', rows)}", f"output_dir={tmp_path / 'out'}"]
    assert "about 2 models; set model_id to one of a, b" in fails(*words)
    assert "no judgment of 'c' on these questions" in fails(*words, "model_id=c")
    assert main(["mt-bench", *words, "model_id=a"]) == 0
    metrics = record(tmp_path / "out")["metrics"]
    assert (metrics["mt_bench"], metrics["unreadable"]) == (5.5, 1)
    assert metrics["categories"] == {"writing": 5.5, "math": None}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "model.name is not set"),
        (["model.name=tiny:llama", "answers=a.jsonl"], "answers is given and so is model.name"),
        (["answers=a.jsonl"], "no judge to grade them"),
        (["model.name=tiny:llama", "prompts=p.jsonl"], "prompts is for a judge"),
        (["judgments=j.jsonl", "endpoint.model=m"], "both judgments and endpoint.model"),
        (["model.name=tiny:llama", "template=vicuna"], "template 'vicuna'"),
        (["model.name=tiny:llama", "temperatures.math=-1"], "temperatures.math=-1"),
        (["model.name=tiny:llama", "max_new_tokens=0"], "max_new_tokens=0 must be at least 1"),
        (["model.name=tiny:llama", "confidence=1.0"], "confidence=1.0 must be above 0 and below 1"),
        (["model.name=tiny:llama", "resamples=5"], "resamples=5 must be at least 100"),
        (["model.name=tiny:llama", "max_questions=0"], "max_questions=0 must be at least 1"),
        (["model.name=tiny:llama", "backend=vlm"], "backend 'vlm'"),
        (["answers=/nowhere.jsonl", "endpoint.model=m"], "answers=/nowhere.jsonl: no such file"),
    ],
)
def test_mistakes_leave_nothing(tmp_path, questions, fails, words, message):
    assert message in fails(f"questions={questions}", *words, f"output_dir={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()


def test_a_math_question_without_a_reference_is_refused(tmp_path, questions, answers, fails):
    write(questions, [{**row, "reference": []} for row in ROWS])
    words = [f"questions={questions}", f"answers={answers}", "endpoint.model=m", f"output_dir={tmp_path / 'out'}"]
    assert "question 111 (math) has no reference answer" in fails(*words)


# files and scores


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"turns": []}, "turns must not be empty"),
        ({"turns": ["a", 3]}, "turns"),
        ({"question_id": True}, "question_id"),
        ({"category": None}, "category"),
        ({"reference": "four"}, "reference is a list"),
        ({"question_id": 81}, "question_id 81 is there twice"),
    ],
)
def test_questions_are_checked(questions, row, message):
    write(questions, [ROWS[0], {**ROWS[1], **row}])
    with pytest.raises(UserError, match=message) as error:
        read_questions(str(questions))
    assert "line 2" in str(error.value)


def test_answers_are_checked(answers):
    rows = lines(answers)
    assert [*read_answers(str(answers), QUESTIONS)] == [question.id for question in QUESTIONS]
    write(answers, [*rows, {**rows[0], "choices": [{"index": 0, "turns": ["last", "one"]}]}])
    assert read_answers(str(answers), QUESTIONS)[81].choices[0].turns == ("last", "one")
    for bad, message in (
        ({"choices": []}, "choices"),
        ({"choices": [{"turns": "a"}]}, "choices"),
        ({"choices": [{"turns": ["a"]}]}, "has 1 turns, question 81 has 2"),
    ):
        write(answers, [{**rows[0], **bad}, *rows[1:]])
        with pytest.raises(UserError, match=message):
            read_answers(str(answers), QUESTIONS)
    write(answers, rows[2:])
    with pytest.raises(UserError, match="no answer to question 81 and 1 more"):
        read_answers(str(answers), QUESTIONS)


def test_the_own_prompts_have_the_fields_of_their_kind():
    for kind, prompt in OWN_PROMPTS.items():
        check_fields(prompt.template, FIELDS[kind], prompt.name)
    with pytest.raises(UserError, match="is no template"):
        check_fields("{question", ("question",), "a prompt")


def test_categories_by_number():
    assert [category_of(number) for number in (80, 81, 90, 91, 160, 161, "81")] == [
        *(None, "writing", "writing", "roleplay", "humanities", None, None)
    ]


@given(
    ratings=st.lists(st.tuples(st.integers(81, 100), st.integers(1, 2), st.sampled_from([-1, 1, 5, 10])), min_size=1),
    seed=st.integers(0, 3),
)
def test_scores_are_means_of_what_could_be_read_within_their_interval(ratings, seed):
    rows = [{"question_id": number, "turn": turn, "score": score} for number, turn, score in ratings]
    for score in summarize(rows, resamples=100, seed=seed):
        part = [
            row["score"]
            for row in rows
            if score.category in ("all", category_of(row["question_id"])) and score.turn in ("both", str(row["turn"]))
        ]
        read = [value for value in part if value != -1]
        assert (score.ratings, score.unreadable) == (len(read), len(part) - len(read))
        assert score.mean == (pytest.approx(sum(read) / len(read)) if read else None)
        if score.low is not None:
            assert min(read) <= score.low <= score.high <= max(read)
    assert summarize(rows, seed=seed) == summarize(rows, seed=seed)


def test_the_interval_draws_questions_not_turns():
    """Two turns that always agree say no more than one."""
    once = [{"question_id": 81 + index, "turn": 1, "score": index % 10 + 1} for index in range(20)]
    twice = once + [{**row, "turn": 2} for row in once]
    one, two = (summarize(rows, resamples=500)[0] for rows in (once, twice))
    assert (one.mean, one.low, one.high) == (two.mean, two.low, two.high)
