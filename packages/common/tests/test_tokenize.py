"""Prompt and response are told apart exactly, whatever the tokenizer merges."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reproalign.common.errors import UserError
from reproalign.common.models.tiny_tokenizers import TINY_TOKENIZERS, tiny_tokenizer
from reproalign.common.text.tokenize import Encoder, TokenRules, check_lengths, join_row

LONG = 10_000
tokenizer_of = cache(tiny_tokenizer)  # an example takes less time than a tokenizer
words = st.sampled_from(
    ["the", " dog", " ", "  ", "\n", "a", "aa", "b", "ab", "two", "four", ".", ", ", "é", "漢", "1", "<|", "▁"]
)
texts = st.one_of(st.text(max_size=30), st.lists(words, max_size=12).map("".join))


def rules(**changes) -> TokenRules:
    settings = {"bos_id": None, "eos_id": 2, "max_length": LONG, "max_prompt_length": LONG - 1, "add_bos": False}
    return TokenRules(**{**settings, **changes})


def tokenize_row(encode, prompt, chosen, rejected, rules, *, continuation=None) -> dict[str, Any]:
    """One pair, as ``tokenize_pairs`` hands it to ``join_row``."""
    texts = {"chosen": chosen, "rejected": rejected}
    wholes = {name: (encode(prompt + text), text) for name, text in texts.items()}
    return join_row(encode(prompt), wholes, rules, continuation=continuation or encode, is_blank=lambda ids: not ids)


def split_ids(kind: str, prompt: str, response: str, **changes) -> tuple[list[int], list[int]]:
    encoder = Encoder(tokenizer_of(kind))
    row = tokenize_row(encoder, prompt, response, response + "!", rules(**changes), continuation=encoder.continuation)
    cut = row["chosen_prompt_length"]
    return row["chosen_input_ids"][:cut], row["chosen_input_ids"][cut:-1]


@pytest.mark.parametrize("kind", TINY_TOKENIZERS)
@given(prompt=texts, first=texts, second=texts)
@settings(max_examples=150, deadline=None)
def test_the_prompt_ids_do_not_depend_on_the_response(kind, prompt, first, second):
    prompt_ids, _ = split_ids(kind, prompt, first)
    assert prompt_ids == split_ids(kind, prompt, second)[0] == Encoder(tokenizer_of(kind))(prompt)


@given(prompt=texts, response=texts)
@settings(max_examples=300, deadline=None)
def test_bytelevel_ids_hold_exactly_their_own_text(prompt, response):
    # A byte-level tokenizer loses nothing, so decoding each side must give that side back.
    tokenizer = tokenizer_of("bytelevel")
    prompt_ids, response_ids = split_ids("bytelevel", prompt, response)
    assert tokenizer.decode(prompt_ids) == prompt
    assert tokenizer.decode(response_ids) == response


def holds_no_special_token(text: str) -> bool:
    return not any(token in text for token in tokenizer_of("metaspace").all_special_tokens)


# After a special token a metaspace tokenizer puts a space of its own.
@given(prompt=texts.filter(holds_no_special_token), response=texts.filter(holds_no_special_token))
@settings(max_examples=300, deadline=None)
def test_metaspace_ids_join_to_the_whole_text(prompt, response):
    # The decoder drops one leading space of a text; an anchor in front keeps it.
    tokenizer = tokenizer_of("metaspace")
    encoder = Encoder(tokenizer)
    prompt, response = (text.replace("▁", "_") for text in (prompt, response))
    prompt_ids, response_ids = split_ids("metaspace", f"x{prompt}", response)
    assert tokenizer.decode(prompt_ids) == f"x{prompt}"
    assert tokenizer.decode(prompt_ids + response_ids) == f"x{prompt}{response}"
    assert encoder(f"x{prompt}") == prompt_ids


@pytest.mark.parametrize("kind", ["metaspace", "unigram"])
def test_no_prefix_space_slips_in_before_a_response_that_would_merge(kind):
    tokenizer = tokenizer_of(kind)
    merging = [("the do", "g and"), ("two p", "lus two"), ("red ", "green"), ("hello", " world")]
    for prompt, response in merging:
        prompt_ids, response_ids = split_ids(kind, prompt, response)
        assert tokenizer.decode(prompt_ids + response_ids) == prompt + response


def test_the_released_boundary_moves_back_by_one_token_where_tokens_merge():
    def encode(text: str) -> list[int]:
        return [300] if text == "aa" else [ord(character) for character in text]

    row = tokenize_row(encode, "a", "a", "b", rules(boundary="released", bos_id=1, special_tokens="released"))
    assert row["chosen_input_ids"] == [1, 300, 2]
    assert row["chosen_prompt_length"] == 1  # the prompt's own token went to the response
    assert row["rejected_prompt_length"] == 2
    exact = tokenize_row(encode, "a", "a", "b", rules())
    assert exact["chosen_input_ids"] == [97, 97, 2]


@pytest.mark.parametrize(
    ("prompt", "response", "expected"),
    [
        ([5], [6], [1, 5, 6, 2]),  # both are missing
        ([1, 5], [6, 2], [1, 5, 6, 2]),  # both are there
        ([1, 1, 5], [6, 2, 2], [1, 5, 6, 2]),  # both are doubled
        ([5], [6, 2, 32], [1, 5, 6, 2]),  # white space after EOS, as ChatML has it
        ([5], [2, 6], [1, 5, 2, 6, 2]),  # EOS inside stays
    ],
)
def test_dedupe_gives_one_bos_and_one_eos(prompt, response, expected):
    from reproalign.common.text.tokenize import add_special_tokens

    def is_blank(ids) -> bool:
        return all(token == 32 for token in ids)

    head, tail = add_special_tokens(rules(bos_id=1, add_bos=True), prompt, response, is_blank)
    assert head + tail == expected


@given(
    prompt=st.integers(0, 30),
    chosen=st.integers(1, 30),
    rejected=st.integers(1, 30),
    max_length=st.integers(4, 40),
    data=st.data(),
)
@settings(deadline=None)
def test_exact_truncation_never_exceeds_the_limit_nor_cuts_needlessly(prompt, chosen, rejected, max_length, data):
    max_prompt = data.draw(st.integers(1, max_length - 1))
    limits = rules(max_length=max_length, max_prompt_length=max_prompt)

    def encode(text: str) -> list[int]:
        return [ord(character) for character in text]

    row = tokenize_row(encode, "p" * prompt, "c" * chosen, "r" * rejected, limits)
    cut_prompt = prompt + max(chosen, rejected) + 1 > max_length
    for side, length in (("chosen", chosen), ("rejected", rejected)):
        ids, start = row[f"{side}_input_ids"], row[f"{side}_prompt_length"]
        assert len(ids) <= max_length
        assert start == (min(prompt, max_prompt) if cut_prompt else prompt)
        assert len(ids) - start == min(length + 1, max_length - start)


def test_keep_start_keeps_the_beginning_of_the_prompt():
    def encode(text: str) -> list[int]:
        return [ord(character) for character in text]

    for truncation, kept in (("keep_end", "cd"), ("keep_start", "ab")):
        limits = rules(max_length=4, max_prompt_length=2, truncation=truncation)
        ids = tokenize_row(encode, "abcd", "x", "y", limits)["chosen_input_ids"]
        assert ids == [*encode(kept), ord("x"), 2]


def test_lengths_must_leave_room_for_a_response():
    with pytest.raises(UserError, match=r"max_prompt_length=64 must be below text\.max_length=64"):
        check_lengths(64, 64)
