"""Rows shown as tokens: what the loss is on, where turns end, and a hash that follows ids and mask."""

from __future__ import annotations

from pathlib import Path

import pytest

from reproalign.common.errors import PreviewedError
from reproalign.common.invocation import Invocation
from reproalign.common.models.tiny_tokenizers import tiny_tokenizer
from reproalign.common.records import Run
from reproalign.common.text.shown import SHOW, describe, lines, parts, used_rows


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_pairs_labelled_rows_and_lists_of_responses_are_understood():
    pair = parts({"prompt_input_ids": [1], "chosen_input_ids": [1, 2, 3], "chosen_prompt_length": 2})
    assert [(part.name, part.trained) for part in pair] == [("chosen", [False, False, True])]
    (labelled,) = parts({"input_ids": [1, 2], "labels": [-100, 2]})
    assert (labelled.name, labelled.trained) == ("", [False, True])
    items = parts([{"input_ids": [[1], [2]]}, {"input_ids": [[3]]}])
    assert [part.name for part in items] == ["item 1, response 1", "item 1, response 2", "item 2, response 1"]


def test_lines_fit_80_columns_and_say_what_is_trained(tokenizer):
    prompt, response = ids(tokenizer, "Hello there\nyou"), [*ids(tokenizer, "well " * 60), tokenizer.eos_token_id]
    (part,) = parts({"input_ids": prompt + response, "prompt_length": len(prompt)})
    shown = lines(part, tokenizer)
    assert max(map(len, shown)) <= 80
    assert "".join(line[2:] for line in shown).replace("|", "").replace("⏎", "\n").startswith("Hello there\nyou")
    assert [line[0] for line in shown].index("+") > 1  # the line feed ends a line
    told = describe(part, tokenizer, {"data.max_length": len(part.ids), "other.max_length": 3})
    assert "EOS: 1; ends with EOS, trained; fills data.max_length=" in told
    assert "other" not in told


def test_the_hash_follows_ids_and_mask_and_showing_ends_the_run(tmp_path, tokenizer, capsys):
    def digest(name: str, rows: list[dict[str, list[int]]]) -> str:
        config = {"output_dir": str(tmp_path / name)}
        with Run.open(Invocation(["x"], "reproalign.common", "train", "m:C", "m:f", config)) as run:
            used_rows(run, tokenizer, rows)
        return run.record["tokens"]["sha256"]

    first = digest("a", [{"input_ids": [5, 6], "labels": [-100, 6]}])
    assert first == digest("b", [{"input_ids": [5, 6], "labels": [-100, 6], "source": [0]}])
    assert first != digest("c", [{"input_ids": [5, 6], "labels": [5, 6]}])
    token = SHOW.set(1)
    try:
        with pytest.raises(PreviewedError):
            digest("d", [{"input_ids": [5, 6], "labels": [-100, 6]}])
    finally:
        SHOW.reset(token)
    out = capsys.readouterr().out
    assert out.startswith("+: the loss is on these tokens")
    assert "row 1 of 1: 2 tokens; loss on 1" in out
    assert first in out
    assert Path(tmp_path / "d").exists()
