"""How a reward model reads a text: layouts, special tokens, lengths, and the file that says so."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from tokenizers.processors import TemplateProcessing

from reproalign.common.config.data import DataConfig
from reproalign.common.config.model import RewardModelConfig
from reproalign.common.config.text import TextConfig
from reproalign.common.data.records import Text
from reproalign.common.data.sources.hh import parse_transcript
from reproalign.common.errors import UserError
from reproalign.common.models.tiny import save_tiny
from reproalign.common.models.tiny_tokenizers import tiny_tokenizer
from reproalign.common.reward.dialogues import render_dialogues, tokenize_dialogues
from reproalign.common.reward.reading import Reader, special_ids, truncate
from reproalign.common.reward.released import RELEASED_IDS
from reproalign.common.reward.rules import (
    CLASSIFIER,
    NOTE,
    RewardRules,
    read_rules,
    scoring_rules,
    told_rules,
    training_rules,
)
from reproalign.common.text.templates import TEMPLATES, transcript

OWN = {"pooling": "last_not_pad", "layout": "chat", "truncation_side": "right"}


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def reader(variant: str = "paper", **options: Any) -> Reader:
    return Reader(tiny_tokenizer(), RewardRules(variant=variant, **options))


def test_layouts():
    turns = [user("Hi"), assistant("Hello"), user("Why?"), assistant("So.")]
    text = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant: So."
    assert reader().render(turns) == reader().render(text) == transcript(turns) == text
    chat = reader(layout="chat")
    assert chat.render(turns) == chat.render(text)
    assert chat.render(text).startswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>")
    assert parse_transcript("\n\nHuman: a\n\nHuman: b\n\nAssistant: c") == [user("a\n\nb"), assistant("c")]
    with pytest.raises(UserError, match="not of 'system'; set layout=chat"):
        reader().render([{"role": "system", "content": "x"}, *turns])
    with pytest.raises(UserError, match="layout=chat: the transcript must begin"):
        chat.render("\n\nAssistant: a\n\nHuman: b")


def test_lmflows_layout_and_the_separator_before_the_last_response():
    turns = [user("Hi"), assistant("Hello"), user("Why?"), assistant("So.")]
    text = "###Human: Hi###Assistant: Hello###Human: Why?###Assistant: So."
    assert reader(layout="lmflow").render(turns) == text
    assert reader(layout="lmflow").render(transcript(turns)) == text
    released = reader(layout="lmflow", response_separator="none")  # prompt and sampled response, put together
    assert released.render(turns) == text.replace(": So.", ":So.")
    assert released.render(turns[:3]) == text.removesuffix("###Assistant: So.")
    plain = reader(response_separator="none")
    assert plain.render(turns) == plain.render(transcript(turns)) == transcript(turns).replace(": So.", ":So.")
    assert RewardRules(layout="lmflow", response_separator="none").note()["response_separator"] == "none"
    with pytest.raises(UserError, match="response_separator=none is for layout=transcript and layout=lmflow"):
        RewardRules(layout="chat", response_separator="none")
    with pytest.raises(UserError, match="unknown response_separator 'blank'"):
        RewardRules(response_separator="blank")


def test_special_tokens():
    tokenizer = tiny_tokenizer()
    plain = tokenizer.encode("Hi", add_special_tokens=False)
    # This tokenizer begins no text with its BOS, so that there is none.
    assert reader()(["Hi"]) == [[*plain, tokenizer.eos_token_id]]
    assert reader("released")(["Hi"]) == [[1, *plain, 2]]
    assert special_ids(tokenizer, "released") == RELEASED_IDS
    assert special_ids(tokenizer, "paper").pad == tokenizer.pad_token_id
    tokenizer.pad_token = None
    assert special_ids(tokenizer, "paper").pad == tokenizer.eos_token_id
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="has no EOS token"):
        special_ids(tokenizer, "paper")


def test_a_template_s_own_eos_is_not_doubled():
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = "<|im_end|>"
    ids = Reader(tokenizer, RewardRules(layout="chat"))([[user("Hi"), assistant("Yo")]])[0]
    assert tokenizer.decode(ids).endswith("Yo<|im_end|>")


@pytest.mark.parametrize(("side", "kept"), [("left", [3, 4, 5]), ("right", [1, 2, 3])])
def test_truncation_takes_the_special_tokens_along(side, kept):
    assert truncate([1, 2, 3, 4, 5], 3, side) == kept


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "html"}, "unknown layout 'html'"),
        ({"truncation_side": "middle"}, "unknown truncation_side"),
        ({"padding_side": "middle"}, "unknown padding_side"),
        ({"max_length": 2}, "max_length=2 must be at least 3"),
        ({"pooling": "mean"}, "unknown pooling 'mean'"),
        ({"special_tokens": "all"}, "unknown special_tokens 'all'"),
        ({"pooling": "first_pad", "padding_side": "left"}, "set padding_side=right"),
        ({"pooling": "last_not_pad", "variant": "released"}, "leave variant as the model was trained"),
    ],
)
def test_text_settings(options, message):
    with pytest.raises(UserError, match=re.escape(message)):
        reader(**options)


# The tokenizer's own special tokens


def begins_with_bos() -> Any:
    """Return a tokenizer that puts BOS before every text, with a template that does so too."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    tokenizer.chat_template = TEMPLATES["llama3"]
    return tokenizer


def test_the_tokenizer_s_own_special_tokens_are_doubled_or_not():
    tokenizer = begins_with_bos()
    turns = [[user("Hi"), assistant("Yo")]]
    once, own = (Reader(tokenizer, RewardRules(**OWN, special_tokens=name))(turns)[0] for name in ("own_once", "own"))
    assert own == [tokenizer.bos_token_id, *once]
    assert once[0] == tokenizer.bos_token_id != once[1]
    assert tokenizer.decode(once).endswith("Yo<|eot_id|>")  # nothing is put behind the text


def test_a_system_turn_is_added_where_the_training_had_one():
    tokenizer = tiny_tokenizer()
    for system, content in (("auto", ""), ("Be brief.", "Be brief.")):
        rendered = Reader(tokenizer, RewardRules(**OWN, system_message=system)).render([user("Hi")])
        assert rendered.startswith(f"<|im_start|>system\n{content}<|im_end|>")
    assert Reader(tokenizer, RewardRules(**OWN)).render([user("Hi")]).startswith("<|im_start|>user")


# Pairs


@pytest.mark.parametrize(
    "rules",
    [
        RewardRules(),
        RewardRules(layout="chat", max_length=20),
        RewardRules(**OWN, system_message="auto", max_length=30),
    ],
)
def test_pairs_are_read_as_single_dialogues_are(tmp_path, rules):
    reader = Reader(tiny_tokenizer(), rules)
    setup = DataConfig(cache_dir=str(tmp_path))
    rows = [
        {"prompt": [user(f"Name {n} moons.")], "chosen": [assistant("Europa")], "rejected": [assistant("Mars, it is")]}
        for n in range(3)
    ]
    found = tokenize_dialogues(render_dialogues(Dataset.from_list(rows), reader, setup), reader, "truncate", setup)
    for row, tokens in zip(rows, found, strict=True):
        dialogues: list[Text] = [row["prompt"] + row[side] for side in ("chosen", "rejected")]
        assert [tokens["chosen_input_ids"], tokens["rejected_input_ids"]] == reader(dialogues)
        assert tokens["length"] == max(map(len, reader(dialogues)))


def test_text_pairs_stand_as_they_are(tmp_path):
    reader = Reader(tiny_tokenizer(), RewardRules(**OWN, system_message="auto"))
    row = {"prompt": "Count: ", "chosen": "one", "rejected": "no"}
    (found,) = render_dialogues(Dataset.from_list([row]), reader, DataConfig(cache_dir=str(tmp_path)))
    assert found == {"prompt": "Count: ", "chosen": "Count: one", "rejected": "Count: no"}


def test_overlong_pairs_are_cut_dropped_or_refused(tmp_path, caplog):
    texts = [f"Count to {n}, slowly: one" for n in range(3)]
    rows = [{"prompt": "", "chosen": text * (9 if n == 1 else 1), "rejected": text} for n, text in enumerate(texts)]

    def lengths(overlong: str, max_length: int = 20) -> list[int]:
        reader = Reader(tiny_tokenizer(), RewardRules(**OWN, special_tokens="own_once", max_length=max_length))
        setup = DataConfig(cache_dir=str(tmp_path))
        return tokenize_dialogues(Dataset.from_list(rows), reader, overlong, setup)["length"][:]

    cut, kept = lengths("truncate"), lengths("drop")
    assert cut[1] == 20
    assert kept == [cut[0], cut[2]]
    assert caplog.messages[0] == "1 of 3 pairs (33%) are longer than text.max_length=20 tokens and truncated"
    with pytest.raises(UserError, match=r"pair 2 is longer than text.max_length=20 tokens \(1 such pairs\)"):
        lengths("error")
    with pytest.raises(UserError, match=r"every pair is longer than text.max_length=3 tokens"):
        lengths("drop", 3)


# reward.json


def test_rules_come_from_the_options_and_then_from_the_training(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "rm")
    untold = RewardModelConfig(name=str(folder))
    assert training_rules(untold, told_rules(untold, TextConfig(), "paper")) == RewardRules()
    trained = RewardRules("max", "released", "chat", 128, "right", "left")
    (folder / NOTE).write_text(json.dumps(trained.note()))
    for rules in (training_rules, scoring_rules):
        assert rules(untold, told_rules(untold, TextConfig(), None)) == trained
    told = RewardModelConfig(name=str(folder), pooling="eos")
    text = TextConfig("transcript", 512, "left", "right")
    assert scoring_rules(told, told_rules(told, text, "paper")) == RewardRules("eos")


def test_a_classifier_that_says_nothing_is_read_as_transformers_reads_it_and_that_is_said(tmp_path, caplog) -> None:
    config = RewardModelConfig(name=str(save_tiny(tmp_path / "rm")))
    with caplog.at_level(logging.WARNING):
        assert scoring_rules(config, {"max_length": 99}) == RewardRules(**{**asdict(CLASSIFIER), "max_length": 99})
    assert "has no reward.json" in caplog.text
    assert "pooling=last_not_pad, variant=paper, layout=chat, max_length=99" in caplog.text


def test_files_of_the_first_version_are_still_read(tmp_path) -> None:
    folder = save_tiny(tmp_path / "rm")
    first = {"pooling": "average", "variant": "released", "layout": "transcript", "max_length": 48}
    (folder / NOTE).write_text(json.dumps({**first, "truncation_side": "right", "padding_side": "left"}))
    assert read_rules(str(folder), None) == RewardRules("average", "released", "transcript", 48, "right", "left")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not valid JSON"),
        ("[]", "must hold an object"),
        ('{"version": 3}', "has version 3, and this reproalign reads up to 2; upgrade reproalign"),
        ('{"version": "new"}', "has version new"),
        ('{"poolin": "eos"}', "unknown rule 'poolin' (did you mean 'pooling'?)"),
        ('{"pooling": "mean"}', "unknown pooling 'mean'"),
        ('{"layout": 3}', "layout=3 must be text"),
        ('{"max_length": "long"}', "max_length=long must be a whole number"),
        ('{"max_length": 2}', "max_length=2 must be at least 3"),
        ('{"system_message": 1}', "system_message=1 must be text"),
    ],
)
def test_a_file_that_is_not_understood_is_refused(tmp_path, content, message) -> None:
    folder = save_tiny(tmp_path / "rm")
    (folder / NOTE).write_text(content)
    with pytest.raises(UserError, match=re.escape(message)):
        read_rules(str(folder), None)
