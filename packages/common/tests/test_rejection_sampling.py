"""Prompts, selection, the loss on responses alone, and perplexities, against brute force and their definitions."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reproalign.common.config.model import ModelConfig
from reproalign.common.errors import UserError
from reproalign.common.evaluation.perplexity import perplexities
from reproalign.common.generation.asking import turn_end
from reproalign.common.generation.prompt_files import read_prompts
from reproalign.common.generation.rules import SamplingRules
from reproalign.common.generation.samples import Sampled
from reproalign.common.generation.select import SelectionRules, select_row
from reproalign.common.generation.transformers_engine import transformers_sampler
from reproalign.common.models.tiny_tokenizers import tiny_tokenizer
from reproalign.common.text.prompts import encode_prompt, prompt_text
from reproalign.common.training.sft import IGNORED, mean_losses, tokenize_responses


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_prompts_are_also_read_from_transcripts(tmp_path):
    dialogue = "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Sing.\n\nAssistant: La."
    file = write(tmp_path / "hh.jsonl", {"chosen": dialogue, "rejected": "…"}, {"prompt": "x", "chosen": "y"})
    first, second = read_prompts(str(file))
    assert first == [*user("Hi"), {"role": "assistant", "content": "Hello!"}, *user("Sing.")]
    assert second == user("x")
    for text, message in (("Hi", "begins with"), ("\n\nHuman: Hi", "ends with an answer")):
        with pytest.raises(UserError, match=rf"hh.jsonl line 1: .*{message}"):
            read_prompts(str(write(file, {"chosen": text})))


def test_an_instruction_brings_its_input(tmp_path):
    rows = [{"instruction": "Sum up.", "input": given} for given in ("A text.", "", "<noinput>", None)]
    found = read_prompts(str(write(tmp_path / "alpaca.jsonl", *rows)))
    assert [prompt[0]["content"] for prompt in found] == ["Sum up.\n\nA text.", *["Sum up."] * 3]


def test_a_transcript_is_asked_as_one_and_ends_at_the_next_turn():
    tokenizer = tiny_tokenizer()
    turns = [*user("Hi"), {"role": "assistant", "content": "Hello!"}, *user("Sing.")]
    text = prompt_text(tokenizer, turns, "transcript")
    assert text == "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: Sing.\n\nAssistant:"
    assert turn_end(tokenizer, "transcript") == ("\n\nHuman:",)
    assert tokenizer.decode(encode_prompt(tokenizer, text, "transcript")) == text
    sampler = transformers_sampler(ModelConfig(name="tiny:llama"), SamplingRules(n=2, layout="transcript"))
    assert sampler.encode(turns) == encode_prompt(tokenizer, text, "transcript")
    with pytest.raises(UserError, match="not of 'system'"):
        prompt_text(tokenizer, [{"role": "system", "content": "Be brief."}, *turns], "transcript")


def test_lmflows_form_has_neither_blank_lines_nor_a_space_at_the_end_of_a_prompt():
    tokenizer = tiny_tokenizer()
    turns = [*user("Hi"), {"role": "assistant", "content": "Hello!"}, *user("Sing.")]
    text = prompt_text(tokenizer, turns, "lmflow")
    assert text == "###Human: Hi###Assistant: Hello!###Human: Sing.###Assistant:"
    assert turn_end(tokenizer, "lmflow") == ("###Human",)
    sampler = transformers_sampler(ModelConfig(name="tiny:llama"), SamplingRules(layout="lmflow"))
    assert sampler.encode(turns) == encode_prompt(tokenizer, text, "lmflow")
    with pytest.raises(UserError, match="layout=lmflow has turns of user and assistant alone, not of 'system'"):
        prompt_text(tokenizer, [{"role": "system", "content": "Be brief."}, *turns], "lmflow")


@pytest.mark.parametrize(("separator", "expected"), [("space", " La."), ("none", "La.")])
def test_the_response_separator_is_learned_with_the_response(separator, expected):
    tokenizer = tiny_tokenizer()
    dialogue = [*user("Sing."), {"role": "assistant", "content": "La."}]
    (row,) = tokenize_responses([dialogue], tokenizer, layout="lmflow", max_length=99, response_separator=separator)
    learned = [token for token in row["labels"] if token != IGNORED]
    assert tokenizer.decode(row["input_ids"][: -len(learned)]) == "###Human: Sing.###Assistant:"
    assert tokenizer.decode(learned[:-1]) == expected
    assert learned[-1] == tokenizer.eos_token_id


@given(
    scores=st.lists(st.floats(-9, 9), min_size=2, max_size=6),
    data=st.data(),
)
def test_selection_by_brute_force(scores, data):
    """MORE eq. 3, AMA R7: y_best is the first of the highest reward; a pair is the best and the worst."""
    n = data.draw(st.integers(2, len(scores)))
    texts = [f"response {number}" for number in range(len(scores))]
    row = Sampled(7, user("x"), texts, scores)
    best = select_row(row, SelectionRules(n))
    assert best is not None
    assert best["reward"] == scores[best["index"]] == max(scores[:n])
    assert all(score < best["reward"] for score in scores[: best["index"]])
    assert best["messages"] == [*user("x"), {"role": "assistant", "content": texts[best["index"]]}]
    pair = select_row(row, SelectionRules(n, "pairs"))
    if len(set(scores[:n])) == 1:
        assert pair is None
    else:
        assert pair is not None
        assert (pair["score_chosen"], pair["score_rejected"]) == (max(scores[:n]), min(scores[:n]))
        assert pair["chosen"] != pair["rejected"]
        assert pair["p_chosen"] == pytest.approx(1 / (1 + math.exp(min(scores[:n]) - max(scores[:n]))))
        assert pair["p_chosen"] >= 0.5


@pytest.mark.parametrize("layout", ["chat", "transcript", "lmflow"])
@pytest.mark.parametrize("kind", ["bytelevel", "metaspace", "unigram"])
def test_the_loss_is_on_the_response_alone(kind, layout):
    """MORE eq. 3: labels are the response's tokens, whatever is cut off the prompt."""
    tokenizer = tiny_tokenizer(kind)
    dialogue = [*user("two plus two?"), {"role": "assistant", "content": "four and four"}]
    (row,) = tokenize_responses([dialogue], tokenizer, layout=layout, max_length=200)
    learned = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != IGNORED]
    given = row["input_ids"][: -len(learned)]
    assert row["labels"] == [IGNORED] * len(given) + learned
    assert given == encode_prompt(tokenizer, prompt_text(tokenizer, dialogue[:-1], layout), layout)
    text = tokenizer.decode(learned).replace("<|im_end|>", "").removesuffix("</s>").strip()
    assert text == "four and four"
    assert learned[-1] == tokenizer.eos_token_id
    (short,) = tokenize_responses([dialogue], tokenizer, layout=layout, max_length=len(learned) + 2)
    assert short["input_ids"] == [*given[-2:], *learned]  # the prompt loses its beginning
    (tiny,) = tokenize_responses([dialogue], tokenizer, layout=layout, max_length=3)
    assert tiny["input_ids"] == [given[-1], *learned[:2]]


def test_losses_per_answer_by_brute_force():
    logits = torch.randn(2, 4, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[IGNORED, 3, 5, IGNORED], [IGNORED, IGNORED, IGNORED, 2]])
    logps = logits.log_softmax(-1)
    expected = [-(logps[0, 0, 3] + logps[0, 1, 5]) / 2, -logps[1, 2, 2]]
    torch.testing.assert_close(mean_losses(logits, labels), torch.stack(expected))


def test_perplexities_leave_outliers_out_of_one_mean():
    metrics = perplexities([1.0, 2.0, 10.0])
    assert metrics["answer_perplexity"] == pytest.approx((math.e + math.e**2) / 2)
    assert metrics["answers_above_gate"] == 1  # e^10 is above 10,000
    assert metrics["exp_mean_loss"] == pytest.approx(math.exp(13 / 3))
    assert "answer_perplexity" not in perplexities([1e5])
