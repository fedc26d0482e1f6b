"""Best-of-n on questions of two turns, against brute force over the candidates, in both renderings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from reproalign.common.config.model import ModelConfig
from reproalign.common.generation.asking import prompt_ids, stops
from reproalign.common.generation.dialogues import dialogue
from reproalign.common.models.tiny_tokenizers import tiny_tokenizer
from reproalign.common.reward.reading import Reader
from reproalign.common.signing import write_signed
from reproalign.common.testing import refusal
from reproalign.common.testing.tiny import tiny_reward_model
from reproalign.common.text.templates import set_template
from reproalign.common.verbs.mt_bench_config import AnsweringModelConfig
from reproalign.mmpo.best_of_n_config import BestOfNConfig
from reproalign.mmpo.best_of_n_rules import policy_rules, reward_models
from reproalign.mmpo.cli import main

QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["name three colours", "count them"]},
    {"question_id": 101, "category": "reasoning", "turns": ["two plus two", "plus four"]},
    {"question_id": 141, "category": "stem", "turns": ["how do I bake bread", "and then"]},
]
WORDS = ("red", "green", "blue", "flour and water", "four", "eight")


@pytest.fixture(scope="module")
def reward(tmp_path_factory) -> Path:
    """A tiny classifier without reward.json, whose tokenizer puts BOS before a text as Gemma's does."""
    folder = tmp_path_factory.mktemp("reward")
    tiny_reward_model(seed=3).save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save_pretrained(folder)
    return folder


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def questions(tmp_path) -> Path:
    return write(tmp_path / "question.jsonl", QUESTIONS)


@pytest.fixture
def candidates(tmp_path) -> Path:
    """Six of each question; those of the second one are equal."""
    rng = np.random.default_rng(0)
    rows = []
    for row in QUESTIONS:
        drawn = [[str(rng.choice(WORDS)) for _ in range(2)] for _ in range(6)]
        drawn = [drawn[0]] * 6 if row["question_id"] == 101 else drawn
        choices = [{"index": index, "turns": turns} for index, turns in enumerate(drawn)]
        rows.append({"question_id": row["question_id"], "answer_id": "x", "model_id": "sft", "choices": choices})
    return write(tmp_path / "sft-6.jsonl", rows)


@pytest.fixture
def fails(capsys):
    return lambda *words: refusal("mmpo", main, ["best-of-n", *words], capsys)


def released_text(turns: Sequence[str], answers: Sequence[str]) -> str:
    text = "<s><|im_start|>system\n"
    for question, answer in zip(turns, answers, strict=False):
        text += f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>\n"
    return text


def training_text(turns: Sequence[str], answers: Sequence[str]) -> str:
    return released_text(turns, answers).replace("<s>", "").replace("system\n", "system\n<|im_end|>\n")


@pytest.mark.parametrize(("rendering", "text", "bos"), [("released", released_text, 2), ("training", training_text, 1)])
def test_the_first_of_the_best_mean_reward_over_turns_among_the_first_n(
    tmp_path, questions, candidates, reward, rendering, text, bos
):
    folder = tmp_path / "out"
    words = [f"questions={questions}", f"candidates={candidates}", f"reward.name={reward}", f"rendering={rendering}"]
    assert main(["best-of-n", *words, "n=[4,1,2,6]", "batch_size=5", f"output_dir={folder}"]) == 0

    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(reward), AutoTokenizer.from_pretrained(reward)
    metrics = json.loads((folder / "run.json").read_text())["metrics"]
    found = {n: lines(folder / f"answers-best-of-{n}.jsonl") for n in (1, 2, 4, 6)}
    means: dict[int, list[float]] = {n: [] for n in found}
    for place, (question, answer) in enumerate(zip(QUESTIONS, lines(candidates), strict=True)):
        rewards = []
        for choice in answer["choices"]:
            own = []
            for turn in (1, 2):
                ids = tokenizer(text(question["turns"], choice["turns"][:turn]), return_tensors="pt")["input_ids"]
                assert ids[0, :bos].tolist() == [1] * bos
                assert 1 not in ids[0, bos:]
                assert 2 not in ids  # EOS
                with torch.no_grad():
                    own.append(model(input_ids=ids).logits.item())
            rewards.append(own)
        written = lines(folder / "rewards.jsonl")[place]["choices"]
        assert [row["turns"] for row in written] == [pytest.approx(own, abs=1e-5) for own in rewards]
        mean = np.mean(rewards, axis=1)
        for n, rows in found.items():
            best = int(np.argmax(np.round(mean[:n], 6)))
            assert rows[place]["choices"] == [answer["choices"][best]]
            assert (rows[place]["question_id"], rows[place]["model_id"]) == (
                question["question_id"],
                f"sft-best-of-{n}",
            )
            means[n].append(mean[best])
    for n, values in means.items():
        assert metrics[f"best_of_{n}"]["mean_proxy"] == pytest.approx(np.mean(values), abs=1e-5)
    assert metrics["identical_candidates"] == 1


def test_two_turns_are_sampled_scored_and_resumed(tmp_path, questions, reward, capsys):
    words = [f"questions={questions}", "policy.name=tiny:llama", f"reward.name={reward}", f"gold={reward}"]
    words += ["n=[2,3]", "max_new_tokens=4", "batch_size=2", "seed=0"]
    folder, part = tmp_path / "whole", tmp_path / "part"
    assert main(["best-of-n", *words, f"output_dir={folder}"]) == 0
    assert "1 of 3 prompts have 3 equal candidates" in capsys.readouterr().out
    made = lines(folder / "candidates.jsonl")
    assert [len(row["choices"]) for row in made] == [3, 3, 3]
    record = json.loads((folder / "run.json").read_text())
    assert record["metrics"]["best_of_3"]["mean_gold"] == record["metrics"]["best_of_3"]["mean_proxy"]
    assert record["metrics"]["best_of_2"]["mean_proxy"] <= record["metrics"]["best_of_3"]["mean_proxy"]
    assert {"policy", "reward", "gold"} == record["fingerprints"]["weights"].keys()
    # A run that was stopped after the first question.
    part.mkdir()
    (part / "candidates.jsonl").write_text((folder / "candidates.jsonl").read_text().splitlines(keepends=True)[0])
    record = {**record, "status": "interrupted", "config": {**record["config"], "output_dir": str(part)}}
    write_signed(part / "run.json", record)
    assert main(["best-of-n", *words, f"output_dir={part}"]) == 0
    again = lines(part / "candidates.jsonl")
    assert [row["choices"] for row in again] == [row["choices"] for row in made]
    assert (part / "scored.jsonl").read_text() == (folder / "scored.jsonl").read_text()


def test_policies_are_asked_and_reward_models_read_with_training_s_empty_system_turn(reward):
    config = BestOfNConfig(reward=ModelConfig(name=str(reward)), policy=AnsweringModelConfig(name="tiny:llama"))
    assert BestOfNConfig().reward.dtype == "float32"
    tokenizer = tiny_tokenizer()
    _, rules = policy_rules(config, 2)
    asked = tokenizer.decode(prompt_ids(tokenizer, dialogue(["Q"], []), rules))
    assert asked == "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
    (judged,) = reward_models(config)
    text = Reader(AutoTokenizer.from_pretrained(reward), judged.rules).render(dialogue(["Q"], ["A"]))
    assert text.startswith("<|im_start|>system\n<|im_end|>\n")
    assert (judged.rules.truncation_side, judged.rules.special_tokens) == ("right", "own_once")


def test_the_released_policy_is_asked_by_the_authors_template_and_stops_at_its_end_of_turn():
    config = BestOfNConfig(rendering="released", policy=AnsweringModelConfig(name="tiny:llama"))
    tokenizer = tiny_tokenizer()
    model, rules = policy_rules(config, 2)
    set_template(tokenizer, model.chat_template)
    asked = tokenizer.decode(prompt_ids(tokenizer, dialogue(["Q"], []), rules))
    assert asked.endswith("<s><|im_start|>system\n<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n")
    assert stops(tokenizer, replace(rules, stop=None)) == ("<|im_end|>",)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["n=0"], "n=0 must be at least 1"),
        (["n=[2,x]"], "must be a whole number"),
        (["n=[2,9]"], "question 81 has 6 candidates, and n asks for 9"),
        (["rendering=paper"], "rendering 'paper'"),
        (["policy.name=tiny:llama"], "candidates is given and so is policy.name"),
        (["temperature=0.7"], "temperature is for prompts"),
        (["prompts=p.jsonl"], "both are given"),
        (["max_prompts=0"], "max_prompts=0 must be at least 1"),
    ],
)
def test_mistakes_leave_nothing(tmp_path, questions, candidates, reward, fails, words, message):
    given = [f"questions={questions}", f"candidates={candidates}", f"reward.name={reward}"]
    assert message in fails(*given, *words, f"output_dir={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()


def test_prompts_have_no_candidates_file_and_need_a_temperature(tmp_path, reward, fails):
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": "hello"}])
    given = [f"prompts={prompts}", f"reward.name={reward}", f"output_dir={tmp_path / 'out'}"]
    assert "policy.name is not set" in fails(*given)
    assert "candidates is for questions" in fails(*given, "candidates=c.jsonl")
    assert "temperatures is for questions" in fails(*given, "policy.name=tiny:llama", "temperatures.math=0.5")
    assert "temperature=0.0 must be above 0" in fails(*given, "policy.name=tiny:llama", "temperature=0.0")


def test_prompts_take_several_n_too(tmp_path, reward):
    prompts = write(tmp_path / "prompts.jsonl", [{"prompt": "hello"}, {"prompt": "two plus two"}])
    words = [f"prompts={prompts}", "policy.name=tiny:llama", f"reward.name={reward}", "n=[1,3]", "max_new_tokens=4"]
    assert main(["best-of-n", *words, f"output_dir={tmp_path / 'out'}"]) == 0
    scores = [row["scores"] for row in lines(tmp_path / "out" / "scored.jsonl")]
    for n in (1, 3):
        rows = lines(tmp_path / "out" / f"selected-best-of-{n}.jsonl")
        assert [row["index"] for row in rows] == [int(np.argmax(own[:n])) for own in scores]


def test_candidates_survive_a_reward_model_that_cannot_score(tmp_path, questions, fails):
    broken = tmp_path / "broken"
    model = tiny_reward_model()
    torch.nn.init.constant_(model.score.weight, torch.nan)
    model.save_pretrained(broken)
    tiny_tokenizer().save_pretrained(broken)
    words = [f"questions={questions}", "policy.name=tiny:llama", f"reward.name={broken}", "n=2", "max_new_tokens=3"]
    assert "gives rewards that are not finite" in fails(*words, f"output_dir={tmp_path / 'out'}")
    assert len(lines(tmp_path / "out" / "candidates.jsonl")) == 3
