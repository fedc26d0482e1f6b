"""What a response is, which responses are candidates, and what is kept of them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reproalign.common.config.model import ModelConfig
from reproalign.common.errors import UserError
from reproalign.common.generation.asking import stops
from reproalign.common.generation.filters import clean_lmflow, is_discarded
from reproalign.common.generation.rules import SamplingRules
from reproalign.common.generation.samples import Sampled
from reproalign.common.generation.select import SelectionRules, select_row
from reproalign.common.generation.transformers_engine import transformers_sampler
from reproalign.common.models.tiny_tokenizers import tiny_tokenizer

PROMPT = [{"role": "user", "content": "Sing."}]
PIECES = st.lists(st.sampled_from(["###Human", "###", "#", "<s>", "</s>", " ", "\n", "La", ": x"]), max_size=8)


@given(PIECES.map("".join))
def test_a_cleaned_response_has_no_opening_of_a_turn_and_no_marks_of_its_own(text):
    cleaned = clean_lmflow(text)
    assert (cleaned is None) == (bool(text) and not text.replace("###Human", ""))
    if cleaned is not None:
        assert "<s>" not in cleaned.replace("<<s>s>", "")
        assert len(cleaned) <= len(text)
        if "###Human" not in text and not re.search(r"[#<]|^\s|\s$", text):
            assert cleaned == text


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("Yes. ###Human: thanks", "Yes."),
        ("###Human: only this", ": only this"),  # as in the release: the first piece that is not empty
        ("  ###Human: x", ""),
        ("#tag#", "tag"),
        ("a<s>b</s>", "ab"),
        ("", ""),
        ("###Human###Human", None),
    ],
)
def test_lmflows_cleaning(text, cleaned):
    assert clean_lmflow(text) == cleaned


def test_discarded_are_short_responses_and_those_with_a_number_sign():
    assert [is_discarded(text, "lmflow") for text in ("", "abc", "abcd", "# one", "no # two")] == [
        True,
        True,
        False,
        True,
        True,
    ]
    assert not is_discarded("", "none")


@given(
    scores=st.lists(st.floats(-2000, 2000), min_size=1, max_size=6),
    texts=st.lists(st.sampled_from(["fine words", "no", "# x", ""]), min_size=6, max_size=6),
    counts=st.none() | st.floats(-9, 9),
    floor=st.none() | st.floats(-1500, 9),
    number=st.integers(1, 6),
)
def test_selection_with_discards_by_brute_force(scores, texts, counts, floor, number):
    row = Sampled(3, PROMPT, texts[: len(scores)], scores)
    number = min(number, len(scores))
    kept = [
        (counts if is_discarded(text, "lmflow") else score)
        for text, score in zip(row.responses[:number], scores[:number], strict=True)
    ]
    candidates = [reward for reward in kept if reward is not None and (floor is None or reward >= floor)]
    made = select_row(row, SelectionRules(number, "best", "lmflow", counts, floor))
    if not candidates:
        assert made is None
        return
    assert made is not None
    assert made["reward"] == max(candidates)
    assert made["index"] == kept.index(max(candidates))
    assert made["messages"] == [*PROMPT, {"role": "assistant", "content": texts[made["index"]]}]
    if counts is not None:
        everything = select_row(row, SelectionRules(number, "all", "lmflow", counts, floor))
        assert everything is not None
        assert (everything["responses"], everything["scores"]) == (row.responses[:number], kept)


def test_a_pair_is_made_of_what_is_not_discarded():
    row = Sampled(0, PROMPT, ["no", "second best", "the worst", "the best"], [9.0, 1.0, -1.0, 2.0])
    pair = select_row(row, SelectionRules(None, "pairs", "lmflow"))
    assert pair is not None
    assert (pair["score_chosen"], pair["score_rejected"]) == (2.0, -1.0)
    assert select_row(row, SelectionRules(2, "pairs", "lmflow")) is None  # one candidate is no pair


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"discard_reward": 0.0}, "discard_reward is of discarded responses"),
        ({"discard": "lmflow", "keep": "all"}, "set discard_reward to what they count"),
    ],
)
def test_rules_that_contradict_themselves_are_refused(rules, message):
    with pytest.raises(UserError, match=re.escape(message)):
        SelectionRules(**rules)


@given(low=st.integers(1, 60), span=st.integers(1, 60), seed=st.integers(0, 2**32 - 1))
def test_drawn_lengths_are_in_the_half_open_range_and_depend_on_the_seed_alone(low, span, seed):
    rules = SamplingRules(max_new_tokens=low + span, min_new_tokens=low)
    rules.check()
    assert low <= rules.limit(seed) == rules.limit(seed) < low + span


def test_every_length_of_the_range_is_drawn():
    rules = SamplingRules(max_new_tokens=8, min_new_tokens=5)
    assert {rules.limit(seed) for seed in range(60)} == {5, 6, 7}
    assert SamplingRules(max_new_tokens=8).limit(1) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_new_tokens": 256}, "min_new_tokens=256 must be below max_new_tokens=256"),
        ({"own_noise": True, "temperature": 0.0}, "temperature=0.0 must be above 0 for responses that are drawn"),
    ],
)
def test_what_cannot_be_sampled_with(options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        SamplingRules(**options).check()


def test_a_batch_is_generated_to_its_drawn_length_and_top_k_of_one_is_greedy():
    config = ModelConfig(name="tiny:llama")
    tokenizer = tiny_tokenizer()
    rules = SamplingRules(n=3, max_new_tokens=12, min_new_tokens=4, clean="lmflow", layout="lmflow", top_k=1)
    sampler = transformers_sampler(config, rules)
    assert stops(tokenizer, rules) == ()  # what follows the next turn's opening is cleaned away, not stopped at
    prompt = sampler.encode(PROMPT)
    (first,) = sampler.generate([prompt], 0)
    assert len(set(first)) == 1  # the likeliest token each time
    (whole,) = transformers_sampler(config, SamplingRules(max_new_tokens=12, temperature=0.0)).generate([prompt], 0)
    (short,) = transformers_sampler(config, SamplingRules(max_new_tokens=rules.limit(0), temperature=0.0)).generate(
        [prompt], 0
    )
    assert whole[0].startswith(short[0])
    assert first[0] == clean_lmflow(short[0])
