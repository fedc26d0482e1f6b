"""Every mistake gives one line that says what, where and what to do, exit code 2, and leaves nothing behind."""

from __future__ import annotations

import json

import pytest
from peft import LoraConfig, TaskType, get_peft_model

from reproalign.common.models.tiny import save_tiny, tiny_model
from reproalign.common.models.tiny_tokenizers import tiny_tokenizer
from reproalign.common.testing import refusal
from reproalign.common.testing.tiny import tiny_reward_model
from reproalign.more.cli import main

ITEM = {"text": ["\n\nHuman: Hi\n\nAssistant: Hello!", "\n\nHuman: Hi\n\nAssistant: Go away."], "score": [1, 0]}
HI = [{"role": "user", "content": "Hi"}]
MINE = [
    "model=tiny",
    "data=own",
    "data.sets.mine.path=mine.jsonl",
    "data.on_error=raise",
    "data.resampling_size=null",
    "data.eval_fraction=0",
    "output_dir=out",
]


def lines(*rows) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


@pytest.fixture
def fails(tmp_path, capsys, monkeypatch):
    """Run a command line that must fail; return its one line of error."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str, verb: str = "train") -> str:
        return refusal("more-rm", main, [verb, *words], capsys, untouched=tmp_path)

    return run


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["experiment=smoke", "weights.alpa=1"], "unknown key 'weights.alpa' (did you mean 'weights.alpha'?)"),
        (["experiment=smoke", "weights.normalize=l3"], "unknown weights.normalize 'l3'"),
        (["experiment=smoke", "weights.rule=mgda"], "unknown weights.rule 'mgda'"),
        (["experiment=smoke", "weights.alpha=0"], "weights.alpha=0.0 must be above 0"),
        (["experiment=smoke", "weights.rule=fixed"], "give one weight to each of whole, half, quarter"),
        (["experiment=smoke", "method=mmoe"], "unknown method 'mmoe'"),
        (["experiment=smoke", "variant=both"], "unknown variant 'both'"),
        (["experiment=smoke", "ties=both"], "unknown ties 'both'"),
        (["experiment=smoke", "model.pooling=mean"], "unknown model.pooling 'mean'"),
        (["experiment=smoke", "text.layout=alpaca"], "unknown text.layout 'alpaca'"),
        (["experiment=smoke", "data.task_num=5"], "data.task_num=5, but there are 3 domains: whole, half, quarter"),
        (["experiment=smoke", "data.domains=[whole,whole]"], "data.domains lists 'whole' twice"),
        (["experiment=smoke", "data.domains=[hole]"], "unknown domain 'hole' (did you mean"),
        (["experiment=smoke", "data.paths.hole=x.json"], "data.paths.hole is gone: data.sets.NAME.path says it"),
        (["experiment=smoke", "data.train_domains=[other]"], "must name some of the domains"),
        (["experiment=smoke", "text.max_length=2"], "max_length=2 must be at least 3"),
        (["experiment=smoke", "data.resampling_size=0"], "data.resampling_size=0"),
        (["experiment=smoke", "variant=released", "data.resampling_size=321"], "variant=released cannot bring"),
        (["data=five", "data.domains=[helpfull]", "model=tiny", "output_dir=x"], "helpfull"),
    ],
)  # fmt: skip
def test_settings(fails, words, message):
    assert message in fails(*words)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lines(ITEM, {**ITEM, "score": [1]}), "line 2: there are 2 responses but 1 scores"),
        (lines(ITEM, '{"text": ["a", "b"], "score": [1, NaN]}'), "line 2: score: nan is not a finite number"),
        (lines({**ITEM, "score": [1, 1]}, {**ITEM, "score": [0, 0]}), "all are ties"),
        (lines({**ITEM, "score": [1, None]}), "all are ties, or too few are scored"),
        (lines({**ITEM, "text": ["a", " "]}), "line 1: a response is empty"),
        (lines({"question": "x", "answer": "y"}), "are those of no known source"),
        (lines(ITEM, {"prompt": "x"}), "line 2: column 'text' is missing"),
    ],
)
def test_rows(fails, tmp_path, content, message):
    (tmp_path / "mine.jsonl").write_text(content)
    assert message in fails(*MINE)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["responses=[a,b]", "ties=half"], "ties does not go with responses=…; leave one of the two out"),
        (["responses=[a,b]", "data=three"], "data does not go with responses=…; leave one of the two out"),
        (["responses=[a,b]", "fresh_head=true"], "fresh_head does not go with responses=…"),
        (["responses=[a,b]", "trainer.bf16=true"], "trainer.bf16 does not go with responses=…"),
        (["judge.model=m"], "judge.model goes with responses=…; give responses too, or leave judge.model out"),
        (["data=three", "confidence=0.9"], "confidence goes with responses=…"),
        (["suite=ama", "temperature=true"], "temperature does not go with suite=…"),
        (["experiment=alpaca-7b-win-rate", "sweep.ties=[half,wrong]"], "ties does not go with responses=…"),
        (["data=three", "data.resampling=false"], "data.resampling is gone: no domain is trained on here"),
        (["responses=[a]"], "responses needs two or more files of `more-rm sample`"),
    ],
)
def test_the_two_kinds_of_evaluation_have_keys_of_their_own(fails, words, message):
    assert message in fails("model.name=rm", "output_dir=out", *words, verb="evaluate")


def test_given_answers_are_read_in_no_template(fails, tmp_path):
    (tmp_path / "answers.jsonl").write_text(lines({"prompt": "Hi", "answer": "Hello"}))
    words = ["files=[answers.jsonl]", "model.name=tiny:llama", "model.chat_template=chatml", "output_dir=out"]
    assert "model.chat_template: prompts and answers are read as they are" in fails(*words, verb="perplexity")


@pytest.mark.parametrize("verb", ["score", "select"])
def test_a_verb_that_draws_nothing_has_no_seed(fails, verb):
    assert "seed is gone: nothing is drawn at random here; leave it out" in fails("seed=1", verb=verb)


def test_an_evaluation_needs_held_out_items(fails, tmp_path):
    (tmp_path / "mine.jsonl").write_text(lines(ITEM))
    assert "needs held-out items" in fails(*MINE, "trainer.eval_strategy=steps")


def test_a_reward_model_does_not_speak(fails, tmp_path):
    tiny_reward_model().save_pretrained(tmp_path / "rm")
    tiny_tokenizer().save_pretrained(tmp_path / "rm")
    (tmp_path / "prompts.jsonl").write_text(lines({"prompt": "Hi"}))
    message = "model.name=rm is a reward model; give a language model"
    assert message in fails("prompts=prompts.jsonl", "model.name=rm", "output_dir=out", verb="sample")
    (tmp_path / "selected.jsonl").write_text(lines({"messages": [*HI, {"role": "assistant", "content": "Yo"}]}))
    assert message in fails("selected=selected.jsonl", "model.name=rm", "output_dir=out", verb="align")


def test_a_language_model_s_adapter_does_not_score(fails, tmp_path):
    get_peft_model(tiny_model(), LoraConfig(task_type=TaskType.CAUSAL_LM)).save_pretrained(tmp_path / "adapter")
    (tmp_path / "responses.jsonl").write_text(lines({"id": 1, "prompt": "Hi", "responses": ["a", "b"]}))
    words = ["responses=responses.jsonl", "model.name=adapter", "output_dir=out"]
    assert "is no reward model with one output, but a language model" in fails(*words, verb="score")


def test_half_a_surrogate_pair_is_named(fails, tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Hi \\ud83d"}\n')
    words = ["prompts=prompts.jsonl", "model.name=tiny:llama", "output_dir=out"]
    assert "line 1: text that is not valid Unicode" in fails(*words, verb="sample")


def test_a_language_model_does_not_score(fails, tmp_path):
    save_tiny(tmp_path / "lm")
    for name in ("responses", "others"):
        (tmp_path / f"{name}.jsonl").write_text(lines({"id": 1, "prompt": "Hi", "responses": ["a", "b"]}))
    words = ["responses=responses.jsonl", "model.name=lm", "output_dir=out"]
    assert "is no reward model with one output, but a language model" in fails(*words, verb="score")
    assert "is no reward model" in fails("data=demo", "model.name=lm", "output_dir=out", verb="evaluate")
    assert "is no reward model" in fails("responses=[responses.jsonl,others.jsonl]", *words[1:], verb="evaluate")
