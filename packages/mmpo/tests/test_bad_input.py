"""Every mistake gives one line that says what, where and what to do, exit code 2, and leaves nothing behind."""

from __future__ import annotations

import json

import pytest

from reproalign.common.models.tiny_tokenizers import tiny_tokenizer
from reproalign.common.testing import refusal
from reproalign.common.testing.tiny import tiny_reward_model
from reproalign.mmpo.cli import main

GOOD = {
    "prompt": [{"role": "user", "content": "Name a moon."}],
    "chosen": [{"role": "assistant", "content": "Europa."}],
    "rejected": [{"role": "assistant", "content": "Mars."}],
    "score_chosen": 9,
    "score_rejected": 2,
}


@pytest.fixture
def fails(tmp_path, capsys, monkeypatch):
    """Run a command line that must fail; return its one line of error."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str, verb: str = "train") -> str:
        return refusal("mmpo", main, [verb, *words], capsys, untouched=tmp_path)

    return run


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["experiment=smoke", "loss.beta=0"], "loss.beta=0.0 must be above 0"),
        (["experiment=smoke", "loss.label_smoothing=0.5"], "loss.label_smoothing=0.5 must be at least 0 and below 0.5"),
        (["experiment=smoke", "target.gamma=-1"], "target.gamma=-1.0 must be at least 0"),
        (["experiment=smoke", "variant=both"], "unknown variant 'both'"),
        (["experiment=smoke-reward"], "run: mmpo reward experiment=smoke-reward"),
        (["data=demo"], "is not set; add"),
        (["experiment=smoke", "target.soft_labels=none.json"], "target.soft_labels=none.json: cannot be read"),
        (["experiment=smoke", "pairs.sampling=uniform"], "needs pairs.sampling_size"),
        (["experiment=smoke", "target.filter_threshold=100"], "leaves no pair"),
        (["experiment=smoke", "target.gamma=null", "target.margin_scale=2"], "is not read without target.gamma;"),
        (["experiment=smoke", "pairs.sampling_size=5"], "is not read without pairs.sampling;"),
        (["experiment=smoke", "model.lora.r=8"], "is not read without model.lora.enabled;"),
    ],
)  # fmt: skip
def test_settings(fails, words, message):
    assert message in fails(*words)


def test_a_group_of_another_verb_is_no_choice(fails):
    sentence = "data is no choice of this verb; leave data=demo out"
    assert sentence in fails("data=demo", "output_dir=out", verb="best-of-n")


def test_an_evaluated_policy_needs_its_reference(fails):
    words = ["model=tiny", "data=demo", "output_dir=out"]
    assert "set reference.model" in fails(*words, verb="evaluate")


@pytest.mark.parametrize(
    "word",
    [
        "reference.model=tiny:llama",
        "reference.revision=main",
        "reference_free=avg",
        "beta=0.1",
        "logprobs.chunk_size=8",
    ],
)
def test_of_a_reward_model_what_policies_read_is_refused(fails, tmp_path, word):
    tiny_reward_model().save_pretrained(tmp_path / "rm")
    tiny_tokenizer().save_pretrained(tmp_path / "rm")
    words = ["model.name=rm", word, "data=demo", "output_dir=out"]
    assert f"{word} is for a policy, but a reward model is evaluated" in fails(*words, verb="evaluate")


@pytest.mark.parametrize("word", ["model.name=rm", "reference.model=rm"])
def test_a_reward_model_is_no_policy(fails, tmp_path, word):
    tiny_reward_model().save_pretrained(tmp_path / "rm")
    tiny_tokenizer().save_pretrained(tmp_path / "rm")
    words = ["model=tiny", "data=demo", "target.gamma=0.5", word, "output_dir=out"]
    assert f"{word} is a reward model; give a language model" in fails(*words)


def test_text_and_messages_are_not_mixed(fails, tmp_path):
    row = {"prompt": "Name a moon.", "chosen": "Europa.", "rejected": "Mars.", "score_chosen": 9, "score_rejected": 2}
    (tmp_path / "text.jsonl").write_text(json.dumps(row) + "\n")
    words = ["model=tiny", "data=demo", "data.sets.own.path=text.jsonl", "target.gamma=0.5", "output_dir=out"]
    assert "data.sets.own has text for prompts and responses and data.sets.demo messages" in fails(*words)


def test_pairs_without_scores_have_no_margin(fails, tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({name: value for name, value in GOOD.items() if "score" not in name}) + "\n")
    assert "pair 1 has no scores" in fails("experiment=smoke", "data=own", f"data.sets.own.path={file}")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("trainer.pad_token=x", "trainer.pad_token is set through model.*"),
        ("trainer.assistant_only_loss=true", "trainer.assistant_only_loss does nothing: rows come tokenised"),
        ("trainer.router_aux_loss_coef=0.5", "trainer.* is refused by trl.SFTTrainer: `router_aux_loss_coef` is set"),
    ],
)
def test_what_trl_refuses_or_does_not_read(fails, word, message):
    assert message in fails("experiment=smoke-sft", word, verb="sft")
