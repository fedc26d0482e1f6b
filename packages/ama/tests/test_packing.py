"""Texts as blocks of equal length, as LMFlow packs them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase

from reproalign.ama.align.packing import effective_block_size, group_texts, pack, tokenize_texts
from reproalign.common.errors import UserError
from reproalign.common.models.tiny_tokenizers import BOS, tiny_tokenizer
from reproalign.common.text.collate import IGNORED

ROWS = st.lists(st.lists(st.integers(0, 99), max_size=12), max_size=8)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    """As LLaMA's: BOS in front, no EOS behind."""
    made = tiny_tokenizer("metaspace")
    template = TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, made.convert_tokens_to_ids(BOS))])
    made.backend_tokenizer.post_processor = template
    return made


@given(rows=ROWS, size=st.integers(1, 9))
def test_blocks_are_the_stream_cut_without_its_remainder(rows: list[list[int]], size: int) -> None:
    stream = [token for row in rows for token in row]
    blocks = group_texts({"input_ids": rows, "labels": rows}, size)
    assert blocks["input_ids"] == blocks["labels"]
    assert all(len(block) == size for block in blocks["input_ids"])
    assert [token for block in blocks["input_ids"] for token in block] == stream[: len(stream) // size * size]


@pytest.mark.parametrize(
    ("asked", "longest", "truncate", "expected"),
    [
        (None, 512, True, 512),
        (None, 10**30, True, 1024),
        (700, 512, True, 512),
        (700, 512, False, 700),
        (300, 512, True, 300),
    ],
)
def test_the_block_is_what_was_asked_for_within_the_model(
    asked: int | None, longest: int, truncate: bool, expected: int
) -> None:
    assert effective_block_size(asked, longest, truncate=truncate) == expected


def test_a_text_begins_with_bos_and_has_no_eos_and_all_of_it_is_learned(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = tokenize_texts(["###Human: hi###Assistant: hello"], tokenizer)
    ids = rows["input_ids"][0]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id not in ids
    assert rows["labels"] == rows["input_ids"]


def test_of_a_couple_only_the_response_is_learned_and_nothing_is_added(tokenizer: PreTrainedTokenizerBase) -> None:
    rows = tokenize_texts([("###Human: hi###Assistant:", " hello"), "alone"], tokenizer)
    head = tokenizer.encode("###Human: hi###Assistant:", add_special_tokens=False)
    tail = tokenizer.encode(" hello", add_special_tokens=False)
    assert rows["input_ids"][0] == head + tail
    assert rows["labels"][0] == [IGNORED] * len(head) + tail
    assert rows["labels"][1] == rows["input_ids"][1] == tokenizer.encode("alone")


def test_every_group_drops_its_own_remainder(tokenizer: PreTrainedTokenizerBase) -> None:
    texts = ["one two three four five"] * 6
    length = len(tokenizer.encode(texts[0]))
    size = length + 1
    assert len(pack(texts, tokenizer, size)) == 6 * length // size
    assert len(pack(texts, tokenizer, size, group_size=3)) == 2 * (3 * length // size)
    with pytest.raises(UserError, match=rf"6 texts of {6 * length} tokens fill no block of {size} tokens"):
        pack(texts, tokenizer, size, group_size=1)
