"""Rows of every source and file kind become the same token ids, are built once, and are told apart when bad."""

from __future__ import annotations

import csv
import gzip
import json
import logging
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow
import pyarrow.parquet
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from reproalign.common.config.data import DataConfig, SetConfig
from reproalign.common.config.text import DialogueTextConfig, PairTextConfig
from reproalign.common.data.cache import cached
from reproalign.common.data.load import PreferenceData, load_evaluation, load_messages, load_preferences
from reproalign.common.data.mixing import MixPart, mix_datasets
from reproalign.common.data.records import PreferenceRecord, Prompt, RowError
from reproalign.common.data.sources import SOURCES, recognise
from reproalign.common.data.views import preference_records
from reproalign.common.errors import UserError
from reproalign.common.models.tiny_tokenizers import tiny_tokenizer
from reproalign.common.text.collate import PairCollator, pad_rows
from reproalign.common.text.pairs import tokenize_pairs
from reproalign.common.text.render import render_messages, render_pairs
from reproalign.common.text.templates import TEMPLATES, check_tokenizer, render, render_completion, with_system


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


def pair(number: int, **changes: Any) -> dict[str, Any]:
    """Return a row in TRL's preference format, with text."""
    return {"prompt": f"Count to {number}. ", "chosen": f"one, {number}", "rejected": "no", **changes}


def write(path: Path, rows: list[Any]) -> Path:
    """Write ``rows`` in the kind of file that the name of ``path`` says; text stands for itself in JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    if path.name.endswith(".jsonl"):
        path.write_text(lines)
    elif path.name.endswith(".jsonl.gz"):
        path.write_bytes(gzip.compress(lines.encode()))
    elif path.name.endswith(".json"):
        path.write_text(json.dumps(rows))
    elif path.name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(filled(rows)), path)
    elif path.name.endswith(".csv"):
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, filled(rows)[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        Dataset.from_list(filled(rows)).save_to_disk(path)
    return path


def filled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give every row all columns, as files of columns have them."""
    names = {name: None for row in rows for name in row}
    return [{**names, **row} for row in rows]


class Setup(NamedTuple):
    data: DataConfig
    text: PairTextConfig


def config(path: Path, source: str | None = "preference", **changes: Any) -> Setup:
    """Return the options for one file; ``changes`` are of whichever section has such a key."""
    kinds = (SetConfig, DataConfig, PairTextConfig)
    of_set, of_data, of_text = (
        {name: value for name, value in changes.items() if name in {field.name for field in fields(kind)}}
        for kind in kinds
    )
    rows = SetConfig(source=source, path=str(path), **of_set)
    return Setup(DataConfig(sets={"rows": rows}, **of_data), PairTextConfig(**of_text))


def load(path: Path, source: str | None = "preference", **changes: Any) -> PreferenceData:
    return load_preferences(config(path, source, **changes).data, seed=0)


def prepare(dataset: Dataset, setup: Setup, tokenizer: Any = None) -> list[dict[str, Any]]:
    tokenizer = tokenizer or tiny_tokenizer()
    rendered = render_pairs(dataset, tokenizer, setup.text, setup.data)
    return tokenize_pairs(rendered, tokenizer, setup.text, setup.data).to_list()


def record(source: str, row: dict[str, Any]) -> PreferenceRecord:
    """Return the one pair of a row."""
    (found,) = preference_records(SOURCES[source].read_one(row), SOURCES[source])
    return found


# Sources

ULTRAFEEDBACK = {
    "prompt": "Name a moon.",
    "prompt_id": "f00d",
    "chosen": [user("Name a moon."), assistant("Europa.")],
    "rejected": [user("Name a moon."), assistant("Mars.")],
    "messages": [user("Name a moon."), assistant("Europa.")],
    "score_chosen": 9.0,
    "score_rejected": 2.5,
    "source": "evol_instruct",
}
SHP = {
    "post_id": "9x",
    "domain": "askbaking_train",
    "upvote_ratio": 0.98,
    "history": "Why does bread rise?",
    "c_root_id_A": "a1",
    "c_root_id_B": "b2",
    "created_at_utc_A": 1636029344,
    "created_at_utc_B": 1636029347,
    "score_A": 3,
    "score_B": 12,
    "human_ref_A": "Heat.",
    "human_ref_B": "Yeast.",
    "labels": 0,
    "seconds_difference": 3.0,
    "score_ratio": 4.0,
}
HH = {
    "chosen": "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: A pun?\n\nAssistant: Lettuce\n\nbegin.",
    "rejected": "\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: A pun?\n\nAssistant: No.",
}
MOON = {"prompt": [user("Name a moon.")], "chosen": [assistant("Europa.")], "rejected": [assistant("Mars.")]}
BREAD = {
    "prompt": [user("Why does bread rise?")],
    "chosen": [assistant("Yeast.")],
    "rejected": [assistant("Heat.")],
    "prompt_id": "9x",
    "domain": "askbaking_train",
}
TEXT = {"prompt": "The sky is ", "chosen": "blue.", "rejected": "green."}
SCORES = {"score_chosen": 8.0, "score_rejected": 3.0}
MARKS = {"prompt_id": "7", "source": "mine", "domain": "moons"}


def without(row: dict[str, Any], *names: str, **changes: Any) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in names} | changes


@pytest.mark.parametrize(
    ("source", "row", "expected"),
    [
        (
            "ultrafeedback",
            ULTRAFEEDBACK,
            {**MOON, "prompt_id": "f00d", "score_chosen": 9.0, "score_rejected": 2.5, "source": "evol_instruct"},
        ),
        (
            "ultrafeedback",
            without(ULTRAFEEDBACK, "score_chosen", "score_rejected", "prompt_id", chosen_rating=4, rejected_rating=1),
            {**MOON, "score_chosen": 4.0, "score_rejected": 1.0, "source": "evol_instruct"},
        ),
        ("shp", SHP, {**BREAD, "score_chosen": 12.0, "score_rejected": 3.0}),
        ("shp", {**SHP, "labels": 1}, {**BREAD, "score_chosen": 12.0, "score_rejected": 3.0}),  # votes decide
        (
            "shp",
            {**SHP, "score_A": 20, "labels": 1},
            {
                **BREAD,
                "chosen": [assistant("Heat.")],
                "rejected": [assistant("Yeast.")],
                "score_chosen": 20.0,
                "score_rejected": 12.0,
            },
        ),
        ("shp", {**SHP, "score_A": 12}, {**BREAD, "score_chosen": 12.0, "score_rejected": 12.0}),  # equal votes: B
        (
            "hh",
            HH,
            {
                "prompt": [user("Hi"), assistant("Hello!"), user("A pun?")],
                "chosen": [assistant("Lettuce\n\nbegin.")],
                "rejected": [assistant("No.")],
            },
        ),
        ("preference", TEXT, TEXT),
        ("preference", {**TEXT, **SCORES, **MARKS}, {**TEXT, **SCORES, **MARKS}),
        ("preference", {**TEXT, "prompt": ""}, {**TEXT, "prompt": ""}),
        ("preference", {"chosen": "The sky is blue.", "rejected": "The sky is black."}, {**TEXT, "rejected": "black."}),
        ("preference", {**MOON, **SCORES, "prompt_id": 7}, {**MOON, **SCORES, "prompt_id": "7"}),
        ("preference", {**MOON, "score_chosen": None, "score_rejected": None}, MOON),
        ("preference", without(ULTRAFEEDBACK, "prompt", "score_chosen", "score_rejected", "source", "prompt_id"), MOON),
    ],
)
def test_a_source_makes_records_of_its_original_rows(source, row, expected):
    found = record(source, row)
    assert {name: value for name, value in found.items() if value is not None} == expected


words = st.lists(st.sampled_from(["the", "dog", "do", " ", "\n", "é", "漢字", "."]), max_size=12).map("".join)


@given(shared=words, chosen=words, rejected=words)
def test_an_implicit_text_prompt_is_shared_whole_words(shared, chosen, rejected):
    row = {"chosen": shared + chosen, "rejected": shared + rejected}
    try:
        found = record("preference", row)
    except RowError:  # nothing is left of a response, or the two are the same
        return
    assert {side: found["prompt"] + found[side] for side in row} == row
    assert not found["prompt"] or found["prompt"][-1].isspace()


@pytest.mark.parametrize(
    ("source", "row", "message"),
    [
        ("ultrafeedback", {**ULTRAFEEDBACK, "chosen": [assistant("Europa.")]}, "'chosen' has no turn before"),
        ("ultrafeedback", {**ULTRAFEEDBACK, "chosen": "Europa."}, "'chosen' must be a non-empty list of messages"),
        ("ultrafeedback", {**ULTRAFEEDBACK, "chosen": [{"role": "user"}]}, "every message needs 'role' and 'content'"),
        ("ultrafeedback", without(ULTRAFEEDBACK, "score_chosen"), "only one of score_chosen and score_rejected"),
        ("shp", without(SHP, "score_A"), "column 'score_A' is missing"),
        ("shp", {**SHP, "score_A": "3"}, "score_A='3' and score_B=12 must be numbers"),
        ("shp", {**SHP, "history": ["Why?"]}, "history, human_ref_A and human_ref_B must be text"),
        ("shp", {**SHP, "human_ref_A": "Yeast."}, "chosen and rejected are the same"),
        ("hh", {**HH, "chosen": "Hello!"}, "'chosen' must be a transcript that begins with"),
        ("hh", {**HH, "chosen": "\n\nHuman: Hi"}, "a transcript needs a turn before the response"),
        ("hh", {**HH, "rejected": HH["rejected"] + "\n\nHuman: Oh"}, "'rejected' must end with an assistant message"),
        ("hh", {**HH, "rejected": "\n\nHuman: Hi\n\nAssistant:"}, "'rejected' is empty"),
        ("preference", {**TEXT, "rejected": [assistant("green.")]}, "'chosen' is text but 'rejected' is not"),
        ("preference", {**TEXT, "prompt": [user("The sky?")]}, "'chosen' is text but 'prompt' is not"),
        ("preference", without(MOON, "prompt"), "no turn before the response, and there is no 'prompt'"),
        ("preference", {**TEXT, "chosen": None}, "column 'chosen' is null"),
        ("preference", {**TEXT, "score_chosen": True, "score_rejected": 1}, "score_chosen: True is not"),
        ("preference", {**TEXT, "chosen": "half a pair \ud83d"}, "not valid Unicode"),
        ("preference", {**MOON, "chosen": [assistant("  ")]}, "'chosen' is empty"),
        ("preference", {**MOON, "rejected": MOON["chosen"]}, "chosen and rejected are the same"),
        ("preference", {**MOON, "chosen": [user("x")]}, "'chosen' must end with an assistant message"),
        ("preference", {**MOON, "prompt": "text"}, "'chosen' has no turn before the response"),
        ("preference", {**TEXT, "score_chosen": "high", "score_rejected": 1}, "score_chosen: 'high' is not a"),
        ("preference", {**TEXT, "score_chosen": 1, "score_rejected": float("nan")}, "nan is not a finite number"),
    ],
)  # fmt: skip
def test_a_bad_row_is_named_and_stops_or_is_skipped(tmp_path, source, row, message, caplog):
    own = MOON if isinstance(row.get("chosen"), list) else TEXT
    good = {"ultrafeedback": ULTRAFEEDBACK, "shp": SHP, "hh": HH, "preference": own}[source]
    file = write(tmp_path / "rows.jsonl", [good, "", row, good])
    with pytest.raises(UserError) as caught:
        load(file, source)
    assert str(caught.value).startswith(f"{file} line 3: ")
    assert message in str(caught.value)
    assert "data.on_error=skip" in str(caught.value)

    with caplog.at_level(logging.WARNING):
        data = load_preferences(config(file, source, on_error="skip").data, seed=0, rejects_dir=tmp_path / "run")
    listed = tmp_path / "run" / "rejects-train-rows.jsonl"
    (reject,) = [json.loads(line) for line in listed.read_text().splitlines()]
    assert reject["place"] == f"{file} line 3"
    assert message in reject["reason"]
    assert f"1 bad rows of train-rows were skipped, listed in {listed}" in caplog.text
    facts = data.provenance["train"]
    assert (facts["rows_read"], facts["rows_rejected"], facts["rows_used"], len(data.train)) == (3, 1, 2, 2)


@pytest.mark.parametrize(
    ("name", "place"), [("rows.json", "row"), ("rows.jsonl.gz", "line"), ("rows.parquet", "row"), ("a.csv", "row")]
)
def test_the_place_of_a_bad_row_is_told_for_every_kind_of_file(tmp_path, name, place):
    file = write(tmp_path / name, [pair(1), pair(2, chosen="no"), pair(3)])
    with pytest.raises(UserError, match=f"{name} {place} 2: chosen and rejected are the same"):
        load(file)


def test_rows_whose_responses_have_equal_scores_are_counted(tmp_path, caplog):
    rows = [{"prompt": f"q{n}", "responses": ["a", "b"], "scores": [1, score]} for n, score in enumerate((2, 1, 0))]
    with caplog.at_level(logging.WARNING):
        data = load(write(tmp_path / "rows.jsonl", rows), None)
    assert (data.provenance["train"]["rows_unused"], data.provenance["train"]["rows_used"]) == (1, 2)
    assert "1 of 3 train rows of rows are of no use: equal scores, or no response" in caplog.text


def test_rows_in_another_form_than_the_first_are_bad(tmp_path):
    file = write(tmp_path / "rows.jsonl", [TEXT, MOON])
    with pytest.raises(UserError, match="line 2: text and messages are mixed in one file"):
        load(file)


def test_a_file_without_a_usable_row_stops_even_when_bad_rows_are_skipped(tmp_path):
    file = write(tmp_path / "rows.jsonl", ["{", pair(1, chosen=" ")])
    with pytest.raises(UserError, match="none of its 2 rows is usable"):
        load(file, on_error="skip")


def test_chosen_and_rejected_after_different_prompts_are_taken_with_a_warning(tmp_path, caplog):
    row = {**ULTRAFEEDBACK, "rejected": [user("Name a planet."), assistant("Mars.")]}
    with caplog.at_level(logging.WARNING):
        data = load(write(tmp_path / "rows.jsonl", [row, ULTRAFEEDBACK]), "ultrafeedback")
    assert data.train[0]["prompt"] == [user("Name a moon.")]
    assert "1 train rows have different prompts" in caplog.text


def test_a_role_that_no_template_knows_is_named(tmp_path):
    file = write(tmp_path / "rows.jsonl", [MOON, {**MOON, "prompt": [{"role": "wizard", "content": "Name a moon."}]}])
    with pytest.raises(UserError, match=r"line 2: column 'prompt': unknown role 'wizard'; there are system, user"):
        load(file)


@pytest.mark.parametrize(
    ("row", "source"),
    [(MOON, "preference"), (SHP, "shp"), ({"messages": [user("a"), assistant("b")]}, "messages")],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_source_that_is_not_named_is_recognised_by_its_columns(row, source):
    assert recognise(row) is SOURCES[source]


def test_unknown_columns_are_named_with_what_to_do(tmp_path):
    file = write(tmp_path / "rows.jsonl", [{"x": 1}])
    with pytest.raises(
        UserError, match=r"line 1: columns x are those of no known source; set data\.sets\.rows\.source"
    ):
        load(file, None)


def test_pairs_of_scored_responses_are_all_that_differ_in_score():
    prompt = Prompt("q", ["a", "b", "c"], scores=[1, None, 3])
    assert prompt.preferences() == [(2, 0)]
    assert Prompt("q", ["a", "b"], scores=[3, 1], pairs=[(1, 0)]).preferences() == [(1, 0)]


# Files


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.jsonl.gz", "a.parquet", "saved"])
@pytest.mark.parametrize(
    "rows",
    [
        [pair(1, note="é 漢"), pair(2, **SCORES), {"chosen": "The sky is blue.", "rejected": "The sky is black."}],
        [MOON, {**MOON, **SCORES, **MARKS}, without(ULTRAFEEDBACK, "prompt")],
    ],
    ids=["text", "messages"],
)
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name, rows):
    records = [record("preference", row) for row in rows]
    assert load(write(tmp_path / name, rows)).train.to_list() == records


def test_a_table_of_text_and_numbers_gives_the_same_rows(tmp_path):
    rows = [
        pair(1, note="é, 漢\n"),
        pair(2, **SCORES),
        {"chosen": 'The "sky" is blue.', "rejected": "The sky is black."},
    ]
    records = [record("preference", row) for row in rows]
    assert load(write(tmp_path / "a.csv", rows)).train.to_list() == records


def test_a_table_with_a_cell_too_many_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected\nq,a,b\nq,a,b,c\n")
    with pytest.raises(UserError, match=r"a\.csv: cannot be read as CSV after row 0 \(.*Expected 3 columns, got 4"):
        load(tmp_path / "a.csv")


def test_a_folder_stands_for_its_one_file_of_the_split(tmp_path):
    write(tmp_path / "train_prefs.jsonl", [pair(1), pair(2)])
    write(tmp_path / "test_prefs.parquet", [pair(3)])
    (tmp_path / "README.md").write_text("about")
    data = load(tmp_path, eval_path=str(tmp_path), split="train_prefs", eval_split="test_prefs")
    assert data.train["chosen"][:] == ["one, 1", "one, 2"]
    assert data.evaluation["chosen"][:] == ["one, 3"]
    write(tmp_path / "train_sft.json", [pair(4)])
    with pytest.raises(UserError, match=r"one file named train\* is needed, found train_prefs.jsonl, train_sft.json"):
        load(tmp_path)


def test_files_that_are_broken_inside_are_refused_by_name(tmp_path):
    whole = write(tmp_path / "whole.jsonl.gz", [pair(n) for n in range(200)]).read_bytes()
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-40])
    (tmp_path / "flipped.jsonl.gz").write_bytes(whole[:20] + bytes([whole[20] ^ 255] * 40) + whole[60:])
    (tmp_path / "latin.jsonl").write_bytes('{"prompt": "é"}'.encode("latin-1"))
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "dataset_info.json").write_text("{}")
    with pytest.raises(UserError, match=r"latin\.jsonl: not UTF-8 at byte 13; save it as UTF-8"):
        load(tmp_path / "latin.jsonl")
    for name in ("cut.jsonl.gz", "flipped.jsonl.gz", "saved"):
        with pytest.raises(UserError, match=f"{name}: cannot be read"):
            load(tmp_path / name)


# Splits and mixtures


@pytest.fixture
def twenty(tmp_path) -> Path:
    return write(tmp_path / "twenty.jsonl", [pair(n) for n in range(20)])


def numbers(dataset: Dataset) -> list[int]:
    """Return which rows of :func:`twenty` are in a data set."""
    return [int(text.removeprefix("one, ")) for text in dataset["chosen"]]


@given(share=st.floats(0.05, 0.9), rows=st.integers(1, 25), held=st.integers(1, 25))
@settings(max_examples=15)
def test_held_out_rows_and_training_rows_are_all_rows_once(tmp_path_factory, share, rows, held):
    file = tmp_path_factory.getbasetemp() / "held_out.jsonl"
    if not file.is_file():
        write(file, [pair(n) for n in range(20)])
    whole, part = load(file, eval_fraction=share), load(file, eval_fraction=share, max_rows=rows, max_eval_rows=held)
    train, evaluation = numbers(whole.train), numbers(whole.evaluation)
    assert sorted(train + evaluation) == list(range(20))
    assert abs(len(evaluation) - share * 20) < 1
    assert numbers(part.train) == train[:rows]  # the limits apply to what is left, from the front
    assert numbers(part.evaluation) == evaluation[:held]
    assert whole.provenance["evaluation"]["held_out_of"] == "train"
    assert whole.provenance["evaluation"]["rows_used"] == len(evaluation)


def test_fraction_keeps_the_first_share(twenty):
    assert numbers(load(twenty, fraction=0.33, max_rows=100).train) == list(range(6))
    assert load(twenty).evaluation is None
    evaluation = load_evaluation(config(twenty, max_eval_rows=3).data, seed=0)
    facts = evaluation.provenance["evaluation"]
    assert numbers(evaluation.train) == [0, 1, 2]
    assert (facts["rows_read"], facts["rows_used"]) == (20, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fraction": 0.01}, "data.sets.rows.fraction=0.01 of 20 rows leaves none"),
        ({"eval_fraction": 0.99}, "data.eval_fraction=0.99 of 20 prompts leaves none"),
    ],
)
def test_settings_that_leave_no_rows_are_refused(twenty, changes, message):
    with pytest.raises(UserError, match=message):
        load(twenty, **changes)


@given(shares=st.lists(st.floats(0, 1), min_size=1, max_size=4), rows=st.integers(1, 12), seed=st.integers(0, 2**31))
@settings(max_examples=25)
def test_a_mixture_has_the_front_of_every_training_split_and_all_test_rows(shares, rows, seed):
    def made(name: str, split: str, count: int) -> Dataset:
        return Dataset.from_dict({"row": [f"{name} {split} {n}" for n in range(count)]})

    parts = [
        MixPart(f"d{i}", share, {"train": made(f"d{i}", "train", rows + i), "test": made(f"d{i}", "test", 2)})
        for i, share in enumerate(shares)
    ]
    expected = {
        "train": [f"d{i} train {n}" for i, share in enumerate(shares) for n in range(int(share * (rows + i)))],
        "test": [f"d{i} test {n}" for i in range(len(shares)) for n in range(2)],
    }
    in_order = {name: dataset["row"][:] for name, dataset in mix_datasets(parts, shuffle=False).items()}
    assert in_order == expected
    mixed = {name: dataset["row"][:] for name, dataset in mix_datasets(parts, seed=seed).items()}
    assert {name: sorted(found) for name, found in mixed.items()} == {
        name: sorted(wanted) for name, wanted in expected.items()
    }
    assert mixed == {name: dataset["row"][:] for name, dataset in mix_datasets(parts, seed=seed).items()}


def test_released_shares_are_paired_with_training_splits_in_load_order():
    rows = Dataset.from_dict({"row": list(range(10))})
    parts = [MixPart("two", 0.5, {"train_a": rows, "train_b": rows}), MixPart("one", 1.0, {"train": rows})]
    assert len(mix_datasets(parts)["train"]) == 5 + 10
    with pytest.raises(UserError, match="split 'dev' of 'one' has neither 'train' nor 'test'"):
        mix_datasets([MixPart("one", 1.0, {"dev": rows})])


def test_a_configured_mixture_reports_every_part(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hub")
    bad = pair(9, chosen="no")
    for name, start in (("a", 0), ("b", 10)):
        write(tmp_path / name / "train.jsonl", [*(pair(n) for n in range(start, start + 10)), bad])
    names = [str(tmp_path / name) for name in "ab"]
    shares = zip("ab", names, (0.5, 0.2), strict=True)
    sets = {label: SetConfig(source="preference", name=name, fraction=share) for label, name, share in shares}
    setup = DataConfig(sets=sets, on_error="skip")
    data = load_preferences(setup, seed=0, rejects_dir=tmp_path)
    assert sorted(numbers(data.train)) == [0, 1, 2, 3, 4, 10, 11]
    assert [data.provenance[f"train:{label}"]["rows_rejected"] for label in "ab"] == [1, 1]
    rejects = [json.loads(line) for file in sorted(tmp_path.glob("rejects-*")) for line in file.open()]
    assert [reject["place"] for reject in rejects] == [f"{name}/train row 11" for name in names]

    setup.eval_fraction, setup.max_rows = 0.4, 2
    data = load_preferences(setup, seed=0)
    assert (len(data.train), len(data.evaluation)) == (2, 8)


@pytest.mark.parametrize("source", ["messages", "preference"])
def test_dialogues_for_fine_tuning_are_split_like_pairs(tmp_path, source):
    rows = [{"messages": [user(f"{n}"), assistant("yes")]} for n in range(10)]
    if source == "preference":
        rows = [{"prompt": f"{n}", "chosen": "yes", "rejected": "no"} for n in range(10)]
    setup = config(write(tmp_path / "rows.jsonl", rows), source, eval_fraction=0.2, fraction=0.5)
    data = load_messages(setup.data, seed=0)
    found = [row["messages"][0]["content"] for part in (data.train, data.evaluation) for row in part]
    assert (len(set(found)), len(data.train), len(data.evaluation)) == (6, 4, 2)
    assert data.train[0]["messages"][1] == assistant("yes")


# Templates

DIALOGUE = [user("Hi "), assistant("Yes.")]
RENDERED = {
    "zephyr": "<|user|>\nHi </s>\n<|assistant|>\nYes.</s>\n",
    "halos": "\n<|im_start|>user\nHi <|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>",
    "halos_released": "\n<|im_start|>user\nHi <|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>",
    "chatml": "<|im_start|>user\nHi <|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n",
    "gemma_chatml": "<s><|im_start|>user\nHi <|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n</s>",
    "gemma_custom": "<s><|im_start|>system\n<|im_start|>user\nHi <|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n",
    "text": "Hi Yes.",
    "llama3": "<s><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nYes.<|eot_id|>",
}
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
)
PLAIN = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"


def tokenizer_with(template: str | None):
    tokenizer = tiny_tokenizer()
    check_tokenizer(tokenizer, chat_template=template)
    return tokenizer


@pytest.mark.parametrize("name", TEMPLATES)
def test_named_templates(name):
    tokenizer = tokenizer_with(name)
    assert render(tokenizer, DIALOGUE) == RENDERED[name]
    prompt = render(tokenizer, DIALOGUE[:1])
    assert prompt + render_completion(tokenizer, DIALOGUE[:1], DIALOGUE[1:], alone=False) == RENDERED[name]
    opened = render(tokenizer, DIALOGUE[:1], generation=True)
    assert opened.startswith(prompt)
    assert RENDERED[name].startswith(opened.removesuffix("\n") if name == "halos_released" else opened)
    assert render(tokenizer, []) == ""


def test_the_template_is_the_tokenizers_own_or_a_file_or_refused(tmp_path):
    assert render(tokenizer_with(None), DIALOGUE) == RENDERED["chatml"]
    (tmp_path / "mine.jinja").write_text(PLAIN)
    assert render(tokenizer_with(str(tmp_path / "mine.jinja")), DIALOGUE) == "[user]Hi [assistant]Yes."
    with pytest.raises(UserError, match=r"no such template \(did you mean 'zephyr'\?\) and no such file"):
        tokenizer_with("zephir")


@pytest.mark.parametrize(
    ("template", "system", "first"),
    [
        (TEMPLATES["chatml"], "auto", {"role": "system", "content": ""}),
        (TEMPLATES["zephyr"], "auto", {"role": "system", "content": ""}),
        (PLAIN, "auto", DIALOGUE[0]),
        (NO_SYSTEM, "auto", {"role": "system", "content": ""}),  # the test is on the text: it speaks of system turns
        (PLAIN, "Be kind.", {"role": "system", "content": "Be kind."}),
        (TEMPLATES["chatml"], None, DIALOGUE[0]),
    ],
)
def test_a_system_turn_is_put_in_front_as_set(template, system, first):
    dialogue = [*DIALOGUE]
    assert with_system(dialogue, system, template)[0] == first
    assert dialogue == DIALOGUE
    own = [{"role": "system", "content": "Mine."}, *DIALOGUE]
    assert with_system(own, system, template) == own  # one that is there stays


def test_a_template_that_refuses_system_turns_names_the_remedy(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = NO_SYSTEM
    file = write(tmp_path / "rows.jsonl", [MOON])
    with pytest.raises(UserError, match=r"refuses turns of system, user \(no system turns\); set text.system_message"):
        render_pairs(load(file).train, tokenizer, *config(file)[::-1])
    (row,) = render_pairs(load(file).train, tokenizer, *config(file, system_message=None)[::-1])
    assert (row["prompt"], row["chosen"]) == ("[user]Name a moon.", "[assistant]Europa.")


def test_a_template_that_renders_a_prompt_differently_before_an_answer_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages | length }}" + PLAIN
    with pytest.raises(UserError, match="renders a prompt differently once an answer follows"):
        render_completion(tokenizer, DIALOGUE[:1], DIALOGUE[1:], alone=False)
    assert render_completion(tokenizer, DIALOGUE[:1], DIALOGUE[1:], alone=True) == "1[assistant]Yes."


def test_the_released_rule_renders_responses_alone(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ bos_token }}" + PLAIN
    file = write(tmp_path / "rows.jsonl", [MOON])
    rendered = {
        rule: render_pairs(load(file).train, tokenizer, *config(file, boundary=rule)[::-1])[0]
        for rule in ("exact", "released")
    }
    assert [rendered[rule]["prompt"] for rule in rendered] == ["<s>[user]Name a moon."] * 2
    assert [rendered[rule]["chosen"] for rule in rendered] == ["[assistant]Europa.", "<s>[assistant]Europa."]


def test_dialogues_are_rendered_whole_after_the_system_turn(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = PLAIN
    rows = Dataset.from_list([{"messages": DIALOGUE, "other": 1}])
    plain, data = DialogueTextConfig(), DataConfig(cache_dir=str(tmp_path))
    assert render_messages(rows, tokenizer, plain, data)[:] == {"text": ["[user]Hi [assistant]Yes."]}
    kind = DialogueTextConfig(system_message="Be kind.")
    assert render_messages(rows, tokenizer, kind, data)["text"][:] == ["[system]Be kind.[user]Hi [assistant]Yes."]


# Preparing, caching


@pytest.fixture
def builds(monkeypatch) -> list[str]:
    """Collect the names of the stages that are really built."""
    built: list[str] = []
    original = Dataset.map

    def spy(self: Dataset, *arguments: Any, **options: Any) -> Dataset:
        built.append(options["desc"])
        return original(self, *arguments, **options)

    monkeypatch.setattr(Dataset, "map", spy)
    return built


BOTH = ["render pairs", "tokenize pairs"]


def test_equal_rows_tokenizer_and_settings_are_prepared_once(tmp_path, builds):
    first = write(tmp_path / "a.jsonl", [MOON, BREAD])
    second = write(tmp_path / "other" / "b.parquet", [MOON, BREAD])
    ids = prepare(load(first).train, config(first))
    assert builds == BOTH
    assert prepare(load(second, on_error="skip").train, config(second, on_error="skip", num_proc=2)) == ids
    assert builds == BOTH


@pytest.mark.parametrize(
    ("changes", "stages"),
    [
        ({"system_message": None}, BOTH),
        ({"boundary": "released"}, BOTH),
        ({"max_length": 1000}, BOTH[1:]),
        ({"max_prompt_length": 500}, BOTH[1:]),
        ({"truncation": "keep_start"}, BOTH[1:]),
        ({"overlong": "drop"}, BOTH[1:]),
        ({"special_tokens": "released"}, BOTH[1:]),
    ],
)
def test_a_changed_setting_is_prepared_again(tmp_path, builds, changes, stages):
    file = write(tmp_path / "rows.jsonl", [MOON])
    prepare(load(file).train, config(file))
    builds.clear()
    prepare(load(file).train, config(file, **changes))
    assert builds == stages


def test_a_changed_row_or_tokenizer_is_prepared_again(tmp_path, builds):
    def prepared(rows: list[Any], tokenizer: Any = None) -> list[dict[str, Any]]:
        builds.clear()
        file = write(tmp_path / "rows.jsonl", rows)
        return prepare(load(file).train, config(file), tokenizer)

    first = prepared([MOON, BREAD])
    assert prepared([BREAD, MOON]) == first[::-1]
    assert builds == BOTH
    assert prepared([MOON, {**BREAD, "rejected": [assistant("heat.")]}]) != first
    assert builds == BOTH
    assert prepared([MOON, BREAD], tokenizer_with("zephyr")) != first
    assert builds == BOTH
    assert prepared([MOON, BREAD], tiny_tokenizer("unigram")) != first
    assert builds == BOTH
    assert prepared([MOON, BREAD]) == first
    assert builds == []


def test_a_build_that_fails_or_loses_a_race_leaves_the_cache_sound(tmp_path):
    rows = Dataset.from_dict({"n": [1, 2]})

    def fail() -> Dataset:
        raise UserError("no")

    def lose() -> Dataset:  # another run finishes the same data first
        assert cached(tmp_path, ["x"], lambda: rows)["n"][:] == [1, 2]
        return rows

    with pytest.raises(UserError):
        cached(tmp_path, ["x"], fail)
    assert cached(tmp_path, ["x"], lose)["n"][:] == [1, 2]
    assert cached(tmp_path, ["x"], fail)["n"][:] == [1, 2]
    assert len(list((tmp_path / "prepared").iterdir())) == 1


WORKERS = """
import sys
from reproalign.common.config.data import DataConfig, SetConfig
from reproalign.common.config.text import PairTextConfig
from reproalign.common.data.load import load_preferences
from reproalign.common.text.pairs import tokenize_pairs
from reproalign.common.text.render import render_pairs
from reproalign.common.models.tiny_tokenizers import tiny_tokenizer

tokenizer = tiny_tokenizer()
results = []
for processes in (None, 1, 2):
    cache = f"{sys.argv[1]}-{processes}"
    data = DataConfig(sets={"rows": SetConfig(path=sys.argv[1])}, num_proc=processes, cache_dir=cache)
    rendered = render_pairs(load_preferences(data, seed=0).train, tokenizer, PairTextConfig(), data)
    results.append(tokenize_pairs(rendered, tokenizer, PairTextConfig(), data).to_list())
assert len(results[0]) == 1000
assert results[0] == results[1] == results[2]
"""


@pytest.mark.slow
def test_worker_processes_do_not_change_the_ids(tmp_path):
    # A process of its own: functions wrapped by the run-time type checks cannot be sent to workers.
    file = write(tmp_path / "rows.jsonl", [{**MOON, "prompt": [user(f"Name {n} moons.")]} for n in range(1000)])
    done = subprocess.run([sys.executable, "-c", WORKERS, str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_tokenised_pairs_keep_scores_and_say_their_length(tmp_path):
    file = write(tmp_path / "rows.jsonl", [{**MOON, **SCORES, **MARKS}])
    (row,) = prepare(load(file).train, config(file))
    columns = {f"{side}_{column}" for side in ("chosen", "rejected") for column in ("input_ids", "prompt_length")}
    assert row.keys() == columns | {"score_chosen", "score_rejected", "length"}
    assert (row["score_chosen"], row["score_rejected"]) == (8.0, 3.0)
    assert row["length"] == max(len(row["chosen_input_ids"]), len(row["rejected_input_ids"]))


def test_overlong_pairs_are_cut_dropped_or_refused(tmp_path, caplog):
    file = write(tmp_path / "rows.jsonl", [pair(1), pair(2, chosen="long " * 100), pair(3)])

    def lengths(overlong: str, max_length: int = 40) -> list[int]:
        setup = config(file, overlong=overlong, max_length=max_length, max_prompt_length=5)
        return [row["length"] for row in prepare(load(file).train, setup)]

    cut, kept = lengths("truncate"), lengths("drop")
    assert cut[1] == 40
    assert kept == [cut[0], cut[2]]
    said = [
        f"1 of 3 pairs (33%) are longer than text.max_length=40 tokens and {word}" for word in ("truncated", "dropped")
    ]
    assert caplog.messages == said
    with pytest.raises(UserError, match=r"pair 2 is longer than text.max_length=40 tokens \(1 such pairs\)"):
        lengths("error")
    with pytest.raises(UserError, match=r"every pair is longer than text.max_length=6 tokens"):
        lengths("drop", 6)


# Batches

token_ids = st.lists(st.integers(3, 500), min_size=1, max_size=9)
rows_of_pairs = st.lists(
    st.tuples(token_ids, token_ids, st.floats(0, 1, width=32)).map(
        lambda parts: {
            "chosen_input_ids": parts[0],
            "rejected_input_ids": parts[1],
            "chosen_prompt_length": len(parts[0]) // 2,
            "rejected_prompt_length": len(parts[1]) // 2,
            "p_chosen": parts[2],
            "score_chosen": 1.0,
        }
    ),
    min_size=1,
    max_size=4,
)


@given(rows=rows_of_pairs, multiple=st.sampled_from([None, 1, 4, 8]))
def test_a_batch_holds_chosen_then_rejected_padded_and_masked(rows, multiple):
    batch = PairCollator(pad_token_id=0, pad_to_multiple_of=multiple)(rows)
    sides = [
        (row[f"{side}_input_ids"], row[f"{side}_prompt_length"]) for side in ("chosen", "rejected") for row in rows
    ]
    longest = max(len(row) for row, _ in sides)
    width = longest if multiple is None else (longest + multiple - 1) // multiple * multiple
    assert batch.keys() == {"input_ids", "attention_mask", "completion_mask", "p_chosen"}
    assert batch["input_ids"].tolist() == [row + [0] * (width - len(row)) for row, _ in sides]
    assert batch["attention_mask"].tolist() == [[1] * len(row) + [0] * (width - len(row)) for row, _ in sides]
    assert batch["completion_mask"].tolist() == [
        [0] * start + [1] * (len(row) - start) + [0] * (width - len(row)) for row, start in sides
    ]
    assert batch["p_chosen"].tolist() == [row["p_chosen"] for row in rows]
    assert {name: value.dtype for name, value in batch.items()} == {
        name: torch.float32 if name == "p_chosen" else torch.int64 for name in batch
    }


def test_rows_can_be_padded_on_the_left_and_dialogues_have_no_completion_mask():
    assert pad_rows([[5], [6, 7]], 9, side="left").tolist() == [[9, 5], [6, 7]]
    batch = PairCollator(pad_token_id=0)([{"chosen_input_ids": [5], "rejected_input_ids": [6, 7]}])
    assert batch.keys() == {"input_ids", "attention_mask"}


# Real rows


@pytest.mark.parametrize(
    ("folder", "source"),
    [
        ("ultrafeedback_binarized", "ultrafeedback"),
        ("shp_stackexchange", "shp"),
        pytest.param("hh_rlhf_harmless_base", "hh", marks=pytest.mark.slow),
        ("hh_rlhf_helpful_base", "hh"),
        ("tulu_v2_sft_mixture_like", "messages"),
    ],
)
def test_real_rows_are_read_and_tokenised(pytestconfig, folder, source):
    beside = pytestconfig.rootpath.parent / "shared" / "data" / folder
    files = sorted(beside.glob("*.jsonl"))
    if not files:
        pytest.skip(f"no {folder} beside the repository")
    tokenizer = tiny_tokenizer()
    for file in files:
        setup = config(file, source, on_error="skip", max_length=512, max_prompt_length=256)
        data = (load_messages if source == "messages" else load_preferences)(setup.data, seed=0)
        facts = data.provenance["train"]
        assert facts["rows_read"] == len(file.read_text(encoding="utf-8").split("\n")) - 1
        assert facts["rows_used"] == facts["rows_read"] - facts["rows_rejected"] == len(data.train)
        assert facts["rows_rejected"] <= 0.05 * facts["rows_read"]
        if source == "messages":
            assert all(tokenizer.encode(render(tokenizer, row["messages"])) for row in data.train)
            continue
        for row in prepare(data.train, setup, tokenizer):
            for side in ("chosen", "rejected"):
                assert 0 < row[f"{side}_prompt_length"] < len(row[f"{side}_input_ids"]) <= 512
