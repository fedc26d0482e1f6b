"""Perplexities of answers: what an answer is, the release's statistic and ours, the loss against the model's own."""

from __future__ import annotations

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from reproalign.common.errors import UserError
from reproalign.common.evaluation.perplexity import (
    AnsweredPrompt,
    answer_tokens,
    cut_transcript,
    perplexities,
    read_answers,
)
from reproalign.common.models.tiny import tiny_folder
from reproalign.common.models.tiny_tokenizers import tiny_tokenizer
from reproalign.common.testing import refusal
from reproalign.common.text.collate import IGNORED
from reproalign.more.cli import main

CHOSEN = "\n\nHuman: Hi\n\nAssistant: First.\n\nSecond."


def test_the_release_counts_an_answer_above_the_gate_as_0():
    found = perplexities([1.0, 2.0, 9.5, math.nan])
    assert found["answer_perplexity_released"] == pytest.approx(3.369, abs=1e-3)
    assert found["answer_perplexity"] == pytest.approx(5.054, abs=1e-3)
    assert (found["answers_above_gate"], found["answers_without_loss"]) == (1, 1)
    # beyond float32 the product of infinity and 0 is NaN, which nanmean leaves out
    assert perplexities([1.0, 200.0])["answer_perplexity_released"] == pytest.approx(math.e)
    assert perplexities([math.nan]) == {"answers_above_gate": 0, "answers_without_loss": 1}


def test_an_answer_is_the_reply_or_as_published_the_last_paragraph_less_11_characters():
    assert cut_transcript(CHOSEN, "reply") == AnsweredPrompt("\n\nHuman: Hi\n\nAssistant: ", "First.\n\nSecond.")
    published = cut_transcript(CHOSEN, "last_paragraph")
    assert published == AnsweredPrompt(
        "\n\nHuman: Hi\n\nAssistant: First.\n\nAssistant: ", ""
    )  # "Second." has 7 characters
    one = "\n\nHuman: Hi\n\nAssistant: Hello there."
    assert cut_transcript(one, "last_paragraph") == cut_transcript(one, "reply")


def test_tokens_are_the_last_ones_and_the_prompt_s_are_ignored():
    tokenizer = tiny_tokenizer()
    answer = AnsweredPrompt("hello two plus ", "two is four")
    (whole,) = answer_tokens([answer], tokenizer, 512)
    prompt = tokenizer(answer.prompt)["input_ids"]
    assert whole["labels"][: len(prompt)] == [IGNORED] * len(prompt)
    assert whole["labels"][len(prompt) :] == whole["input_ids"][len(prompt) :]
    (cut,) = answer_tokens([answer], tokenizer, 3)
    assert cut == {name: values[-3:] for name, values in whole.items()}


def test_the_command_measures_each_file_and_agrees_with_the_model_s_own_loss(tmp_path):
    rows = [{"prompt": "hello ", "answer": "two plus two"}, {"prompt": "count ", "answer": ""}]
    (tmp_path / "helpful.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "harmless.jsonl").write_text(json.dumps({"chosen": CHOSEN}) + "\n")
    files = f"files=[{tmp_path / 'helpful.jsonl'},{tmp_path / 'harmless.jsonl'}]"
    assert main(["perplexity", "model=tiny", files, f"output_dir={tmp_path / 'out'}"]) == 0
    found = json.loads((tmp_path / "out" / "perplexity.json").read_text())
    assert (found["helpful"]["answers"], found["helpful"]["answers_without_loss"]) == (2, 1)
    model = AutoModelForCausalLM.from_pretrained(tiny_folder("llama"), dtype=torch.float32)
    (row,) = answer_tokens([AnsweredPrompt("hello ", "two plus two")], tiny_tokenizer(), 512)
    with torch.no_grad():
        loss = model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss.item()
    assert found["helpful"]["exp_mean_loss"] == pytest.approx(math.exp(loss), rel=1e-3)
    assert found["helpful"]["answer_perplexity"] == pytest.approx(found["helpful"]["perplexity"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["answer=paragraph"], "answer"),
        (["max_length=1"], "max_length=1 must be at least 2"),
        (["files=[]"], "files is empty"),
        (["files=[/nowhere.jsonl]"], "/nowhere.jsonl"),
    ],
)
def test_mistakes_leave_nothing(tmp_path, capsys, words, message):
    (tmp_path / "a.jsonl").write_text(json.dumps({"chosen": CHOSEN}) + "\n")
    given = ["perplexity", "model=tiny", f"files=[{tmp_path / 'a.jsonl'}]", *words, f"output_dir={tmp_path / 'out'}"]
    assert message in refusal("more-rm", main, given, capsys)
    assert not (tmp_path / "out").exists()


def test_a_row_that_has_neither_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": "x"}) + "\n")
    with pytest.raises(UserError, match="line 1: prompt and answer, or chosen"):
        read_answers(str(path), "reply", None)
    path.write_text(json.dumps({"chosen": "\n\nHuman: only"}) + "\n")
    with pytest.raises(UserError, match="must end with an assistant's turn"):
        read_answers(str(path), "reply", None)
