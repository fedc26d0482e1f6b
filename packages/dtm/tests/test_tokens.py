"""Token ids and labels: what is supervised, for any text and tokenizer."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from reproalign.common.errors import UserError
from reproalign.common.models.tiny_tokenizers import TINY_TOKENIZERS, tiny_tokenizer
from reproalign.common.text.collate import RowCollator
from reproalign.common.text.tokenize import Encoder
from reproalign.dtm.prompt import alpaca
from reproalign.dtm.rules import PAPER, rules_of
from reproalign.dtm.tokens import (
    IGNORED,
    TokensConfig,
    collator,
    encoder,
    resolved,
    supervised_only,
    tokenize,
)

words = st.sampled_from(["the", " dog", " ", "\n", "a", "ab", "bab", ".", "é", "漢", ":", "two four", "#", "▁"])
texts = st.one_of(st.text(st.characters(codec="utf-8"), max_size=20), st.lists(words, max_size=10).map("".join))
FULL = TokensConfig(max_length=None)
ROW = {"instruction": "Name a moon.", "input": None, "output": "Europa and two dogs."}


def encode(tokenizer, row, variant="paper", config=FULL) -> tuple[list[int], list[int], int]:
    made = encoder(tokenizer, resolved(config, rules_of(variant).tokens))(
        {name: [value] for name, value in row.items()}
    )
    return made["input_ids"][0], made["labels"][0], made["supervised"][0]


@pytest.mark.parametrize("kind", TINY_TOKENIZERS)
@given(instruction=texts, context=texts, output=texts)
@settings(max_examples=150)
def test_no_prompt_token_is_supervised_and_every_response_token_is(kind, instruction, context, output):
    tokenizer = tiny_tokenizer(kind)
    row = {"instruction": instruction, "input": context, "output": output}
    ids, labels, supervised = encode(tokenizer, row)
    prompt = Encoder(tokenizer)(alpaca(row)[0])
    assert ids[: len(prompt)] == prompt, "the prompt's ids do not depend on the response"
    assert labels == [IGNORED] * len(prompt) + ids[len(prompt) :]
    assert ids[-1] == labels[-1] == tokenizer.eos_token_id
    assert supervised == len(ids) - len(prompt)
    without = encode(tokenizer, row, config=TokensConfig(max_length=None, append_eos=False))
    if tokenizer.eos_token not in output:
        assert without[0] == ids[:-1]
        if kind == "bytelevel":
            assert tokenizer.decode(without[0][len(prompt) :]) == output


@given(output=texts, longest=st.integers(1, 120))
@settings(max_examples=100)
def test_over_long_rows_are_cut_at_the_right(output, longest):
    tokenizer = tiny_tokenizer()
    for variant in ("paper", "released"):
        whole, labels, _ = encode(tokenizer, {**ROW, "output": output}, variant)
        cut, cut_labels, supervised = encode(
            tokenizer, {**ROW, "output": output}, variant, TokensConfig(max_length=longest)
        )
        assert (cut, cut_labels) == (whole[:longest], labels[:longest])
        assert supervised == sum(label != IGNORED for label in cut_labels[1:])


def test_the_release_masks_as_many_as_the_prompt_has_by_itself():
    tokenizer = tiny_tokenizer()
    ids, labels, _ = encode(tokenizer, ROW, "released")
    prompt, response = alpaca(ROW)
    assert ids == tokenizer(prompt + response)["input_ids"]
    assert labels[: len(tokenizer(prompt)["input_ids"])] == [IGNORED] * len(tokenizer(prompt)["input_ids"])
    assert tokenizer.eos_token_id not in ids
    with_eos = encode(tokenizer, ROW, "released", TokensConfig(max_length=None, append_eos=True))[0]
    assert with_eos == [*ids, tokenizer.eos_token_id]


def test_a_separator_is_part_of_the_prompt():
    tokenizer = tiny_tokenizer()
    ids, labels, _ = encode(tokenizer, ROW, config=TokensConfig(max_length=None, separator="\n"))
    start = next(index for index, label in enumerate(labels) if label != IGNORED)
    assert tokenizer.decode(ids[:start]).endswith("### Response:\n")


def test_rows_without_a_supervised_token_are_kept_counted_and_can_be_left_out():
    rows = Dataset.from_list([{**ROW, "source": "a"}, {**ROW, "instruction": "long " * 50, "source": "b"}])
    made = tokenize(rows, tiny_tokenizer(), resolved(TokensConfig(max_length=120), PAPER.tokens))
    assert made["source"] == ["a", "b"]
    assert made["supervised"][1] == 0
    assert supervised_only(made)["source"] == ["a"]


def test_batches_are_padded_to_a_multiple_of_eight_on_the_side_asked_for():
    rows = [{"input_ids": [5, 6, 7], "labels": [IGNORED, 6, 7]}, {"input_ids": [4] * 9, "labels": [4] * 9}]
    right, left = RowCollator(0)(rows), RowCollator(0, "left")(rows)
    assert right["input_ids"].shape == left["labels"].shape == (2, 16)
    assert right["input_ids"][0].tolist() == [5, 6, 7] + [0] * 13
    assert left["labels"][0].tolist() == [IGNORED] * 14 + [6, 7]
    assert left["attention_mask"].sum(1).tolist() == [3, 9]
    assert right["labels"].dtype == torch.long


def test_what_a_tokenizer_must_have():
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    assert collator(tokenizer).pad_token_id == tokenizer.eos_token_id
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="neither a pad token nor EOS"):
        collator(tokenizer)
    with pytest.raises(UserError, match=r"tokens\.append_eos=false"):
        encoder(tokenizer, resolved(FULL, PAPER.tokens))
