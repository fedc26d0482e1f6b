"""``ama data``: the forms HH-RLHF is published in, the paper's division, and what is left out and why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reproalign.ama.align.preference_rows import PreferenceExample, read_examples
from reproalign.ama.align.preference_split import divide
from reproalign.ama.align.raft_config import PreferenceDataConfig
from reproalign.ama.cli import main
from reproalign.common.data.reading import Row
from reproalign.common.errors import UserError
from reproalign.common.testing import refusal


def transcript(question: str, answer: str) -> str:
    return f"\n\nHuman: {question}\n\nAssistant: {answer}"


def hh(number: int, rejected: str = "no") -> dict:
    return {"chosen": transcript(f"q{number}", f"a{number}"), "rejected": transcript(f"q{number}", rejected)}


def example(number: int) -> PreferenceExample:
    return PreferenceExample([{"role": "user", "content": f"q{number}"}], f"a{number}", "no")


def read(*rows: dict, on_error: str = "skip") -> tuple[list[PreferenceExample], list[tuple[str, str]]]:
    rejects: list[tuple[str, str]] = []
    found = read_examples(
        (Row(f"file line {number}", row) for number, row in enumerate(rows, start=1)),
        on_error,
        lambda place, reason, what: rejects.append((what, reason)),
    )
    return found, rejects


def test_the_three_forms_of_a_row_come_to_the_same():
    messages = [{"role": "user", "content": "q1"}]
    answers = {name: [{"role": "assistant", "content": text}] for name, text in (("chosen", "a1"), ("rejected", "no"))}
    forms = [
        hh(1),
        {"prompt": "\n\nHuman: q1\n\nAssistant:", "chosen": " a1", "rejected": " no"},
        {"prompt": messages, **answers},
        {name: [*messages, *answer] for name, answer in answers.items()},
    ]
    found, rejects = read(*forms)
    assert found == [example(1)] * 4
    assert not rejects
    assert found[0].dialogue() == {"messages": [*messages, *answers["chosen"]]}
    assert found[0].pair() == {"prompt": messages, **answers}


def test_a_row_that_is_no_pair_may_be_a_dialogue_nevertheless():
    found, rejects = read(
        hh(1, "a1"), {**hh(2), "rejected": transcript("other", "x")}, hh(3, ""), {"chosen": "Hi", "rejected": "Ho"}, {}
    )
    assert [(row.chosen, row.rejected) for row in found] == [("a1", None), ("a2", None), ("a3", None)]
    assert [what for what, _ in rejects] == ["pair", "pair", "pair", "row", "row"]
    assert "different prompts" in rejects[1][1]
    with pytest.raises(UserError, match="file line 1: column 'chosen' is missing"):
        read({}, on_error="raise")


@given(train=st.integers(1, 8), test=st.integers(1, 30), first=st.integers(1, 30), last=st.integers(1, 30))
def test_the_published_division_holds_out_what_training_has_not_seen(train, test, first, last):
    rows = [example(number) for number in range(train + test)]
    config = PreferenceDataConfig(test_first=first, test_last=last)
    if test <= first:
        with pytest.raises(UserError, match="none of"):
            divide(rows[:train], rows[train:], config)
        return
    split = divide(rows[:train], rows[train:], config)
    assert split.train == rows[: train + first]
    assert split.held_out == split.eval_prompts == rows[max(train + first, train + test - last) :]
    assert split.prompts == rows[:train]
    assert not {row.key for row in split.train} & {row.key for row in split.held_out}
    released = divide(rows[:train], rows[train:], config, trained_prompts=True)
    assert released.eval_prompts == rows[train : train + first]  # as published: the reward model knows them
    assert released.held_out == split.held_out


@given(st.lists(st.integers(0, 6), min_size=2, max_size=30), st.integers(0, 99))
def test_a_fraction_is_held_out_by_prompt(numbers, seed):
    rows = [example(number) for number in numbers]
    config = PreferenceDataConfig(split="fraction", eval_fraction=0.3, seed=seed)
    if len(set(numbers)) == 1:
        with pytest.raises(UserError, match="of 1 prompts leaves none"):
            divide(rows, [], config)
        return
    split = divide(rows, [], config)
    assert len(split.train) + len(split.held_out) == len(rows)
    assert split.train
    assert split.held_out
    assert not {row.key for row in split.train} & {row.key for row in split.held_out}
    assert divide(rows, [], config) == split


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    parts = {
        "train": [hh(1), hh(1, "nay"), hh(2), {"chosen": "?", "rejected": "!"}, hh(3, "a3"), hh(4)],
        "test": [hh(1), hh(6), hh(4), hh(7), hh(8)],
    }
    parts["train"][2] = {name: transcript("long " * 50, name) for name in ("chosen", "rejected")}
    words = []
    for name, rows in parts.items():
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        words.append(f"{name}=[{path}]")
    return words


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_files(tmp_path, files):
    folder = tmp_path / "out"
    words = [*files, "tokenizer=tiny:llama", "max_prompt_length=60", "test_first=2", f"output_dir={folder}"]
    assert main(["data", *words]) == 0

    def questions(name: str) -> list[str]:
        return [row["prompt"][-1]["content"] for row in lines(folder / f"{name}.jsonl")]

    assert questions("prompts") == ["q1", "q1", "q3", "q4"]
    assert questions("eval_prompts") == questions("eval_pairs") == ["q4", "q7", "q8"]
    assert [row["messages"][-1]["content"] for row in lines(folder / "sft.jsonl")] == [
        "a1",
        "a1",
        "chosen",
        "a3",
        "a4",
        "a1",
        "a6",
    ]
    assert len(lines(folder / "pairs.jsonl")) == 6
    first = lines(folder / "pairs.jsonl")[0]
    assert (first["chosen"][0]["content"], first["rejected"][0]["content"]) == ("a1", "no")
    rejects = lines(folder / "rejects.jsonl")
    assert [(row["skipped"], row["place"].rpartition(" ")[2]) for row in rejects] == [("row", "4"), ("pair", "5")]
    facts = json.loads((folder / "run.json").read_text())["metrics"]
    assert facts["prompts_overlong"] == facts["prompts_repeated"] == facts["eval_prompts_in_training"] == 1
    assert (facts["train_rows"], facts["test_rows"], facts["rejected_rows"], facts["rejected_pairs"]) == (5, 5, 1, 1)


def test_repeated_and_leaked_prompts_can_be_left_out(tmp_path, files):
    folder = tmp_path / "out"
    words = [*files, "max_prompt_length=null", "test_first=2", "dedup_prompts=true", "decontaminate=true"]
    assert main(["data", *words, f"output_dir={folder}"]) == 0
    prompts, held = (
        [row["prompt"][-1]["content"].split()[0] for row in lines(folder / f"{name}.jsonl")]
        for name in ("prompts", "eval_prompts")
    )
    assert prompts == ["q1", "long", "q3", "q4"]
    assert held == ["q7", "q8"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "split=published: none of 5 test rows is left to hold out after the first test_first=6275"),
        (["split=test", "variant=released"], "variant=released is the published division"),
        (["split=half"], "unknown split 'half'"),
        (["split=fraction", "eval_fraction=1"], "eval_fraction=1.0 must be above 0 and below 1"),
        (["test_last=0"], "test_last=0 must be at least 1"),
        (["split=test", "test_first=2"], "test_first is of split=published, not of split=test"),
        (["eval_fraction=0.5"], "eval_fraction is of split=fraction, not of split=published"),
        (["revision=main"], "revision is of rows on the Hub, and train=[FILE] gives files"),
        (["split=test", "max_prompt_length=1"], "prompts: all 5 prompts are longer than max_prompt_length=1"),
        (["split=test", "tokenizer=null"], "tokenizer is not set"),
        (["split=test", "max_prompt_length=null"], "tokenizer measures prompts, and max_prompt_length=null needs no"),
        (["split=test", "max_prompt_length=null", "tokenizer=null", "layout=chat"], "layout measures prompts"),
        (["split=test", "max_prompt_length=null", "tokenizer=null", "chat_template=chatml"], "chat_template measures"),
        (["split=test", "seed=7"], "seed is of split=fraction, not of split=test"),
        (["split=test", "chat_template=chatml"], "chat_template is of layout=chat"),
        (["split=test", "on_error=raise"], "train.jsonl line 4: 'chosen' must be a transcript"),
        (["train=[]"], "test=[FILE] needs train=[FILE]"),
        (["test=[]"], "split=published needs test rows"),
        (["train=[none.jsonl]"], "train=none.jsonl: no such file"),
    ],
)
def test_mistakes_leave_nothing_behind(tmp_path, files, capsys, words, message):
    given = ["data", *files, "tokenizer=tiny:llama", *words, f"output_dir={tmp_path / 'out'}"]
    assert message in refusal("ama", main, given, capsys, untouched=tmp_path)
