"""Rows of every source become the examples of its rule, in the order of training, cut where the variant says."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reproalign.common.config.data import SetConfig
from reproalign.common.data.load import load_set
from reproalign.common.data.reading import Row as Original
from reproalign.common.data.records import assistant, user
from reproalign.common.data.sources import SOURCES
from reproalign.common.errors import UserError
from reproalign.common.models.tiny_tokenizers import tiny_tokenizer
from reproalign.common.text.templates import check_tokenizer, render
from reproalign.common.text.tokenize import Encoder
from reproalign.radpo.batches import check_mismatch, lay_out, mismatch
from reproalign.radpo.config import RowDataConfig, RowTextConfig
from reproalign.radpo.data import (
    held_out_batches,
    load_examples,
    prepare_held_out,
    prepare_rows,
)
from reproalign.radpo.examples import Example, collect, examples_of, examples_view, pick_shp
from reproalign.radpo.released import Conversations
from reproalign.radpo.rows import RowRules, build_rows, csft_rows, paired_rows, sft_rows, shuffle_prompts, unpaired_rows
from reproalign.radpo.rules import PAPER, RELEASED

SLICES = Path(__file__).parents[4] / "shared" / "data"


def read(tmp_path: Path, name: str, *rows: Any, role: str = "train", **changes: Any) -> dict[str, Example]:
    """Return the examples that source ``name`` makes of ``rows``; text stands for itself."""
    file = tmp_path / f"{name}.jsonl"
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    data = RowDataConfig(sets={name: SetConfig(source=name, path=str(file))}, **changes)
    found = load_examples(data, train=role == "train", rejects_dir=tmp_path)
    return found.train if role == "train" else found.evaluation or {}


def example(number: int = 0, **changes: Any) -> Example:
    """Return an example of one pair."""
    fields: dict[str, Any] = {
        "key": f"p{number}",
        "prompt": [user(f"Count to {number}")],
        "generations": [f"good {number}", f"bad {number}"],
        "name": "made-up",
        "pairs": [(0, 1)],
    }
    return Example(**{**fields, **changes})


def examples(count: int, **changes: Any) -> dict[str, Example]:
    return {f"p{n}": example(n, **changes) for n in range(count)}


def texts(rows: list[dict[str, Any]], side: str = "completion") -> list[str]:
    return [row[side] for row in rows]


# Sources


@pytest.mark.parametrize("name", ["hh", "hh_helpful", "hh_harmless"])
def test_hh(tmp_path, name):
    start = "\n\nHuman: Hi   there \n\nAssistant: Hello\n\nHuman: More?\n\nAssistant: "
    found = read(
        tmp_path,
        name,
        *({"chosen": start + good, "rejected": start + bad} for good, bad in (("A \t B", "C"), ("D", "E"))),
    )
    (one,) = found.values()
    assert list(found) == ["Hi   there Hello More?"]
    assert one.prompt == [user("Hi there"), assistant("Hello"), user("More?")]
    assert one.generations == ["A B", "C", "D", "E"]
    assert (one.pairs, one.sft_index, one.truncation_mode, one.name) == ([(0, 1), (2, 3)], 0, "keep_end", name)


def test_hh_turns_alternate_and_the_rejected_response_follows_the_last_marker(tmp_path):
    row = {
        "chosen": "\n\nHuman: a\n\nHuman: b\n\nAssistant: c\n\nAssistant: d",
        "rejected": "\n\nHuman: a\n\nAssistant: x\n\nHuman: z\n\nAssistant: y",
    }
    (one,) = read(tmp_path, "hh", row).values()
    assert one.prompt == [user("a"), assistant("b"), user("c")]
    assert one.generations == ["d", "y"]


def shp_row(a: int, b: int, *, history: str = "Why?", label: int | None = None) -> dict[str, Any]:
    label = int(a > b) if label is None else label
    answers = {"human_ref_A": f"A {a} {b}", "human_ref_B": f"B {a} {b}"}
    return {"history": history, **answers, "score_A": a, "score_B": b, "labels": label}


def test_shp(tmp_path):
    rows = [shp_row(4, 2), shp_row(3, 2), shp_row(1, 5), shp_row(7, 1, label=0)]
    one = read(tmp_path, "shp", *rows)["Why?"]
    assert one.generations == ["A 4 2", "B 4 2", "A 1 5", "B 1 5", "A 7 1", "B 7 1"]
    assert sorted(one.pairs) == [(0, 1), (3, 2), (5, 4)]
    assert one.scores == [4, 2, 1, 5, 7, 1]
    assert (one.truncation_mode, one.original_prompt, one.sft_index) == ("keep_start", "Why?", 0)
    # Evaluation keeps all rows.
    assert read(tmp_path, "shp", *rows, role="evaluation")["Why?"].pairs == [(0, 1), (2, 3), (5, 4), (7, 6)]


@given(votes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=12))
@settings(deadline=None)
def test_shp_keeps_clear_pairs_and_five_a_prompt(votes):
    source = SOURCES["shp"]
    parts = [part for a, b in votes for part in examples_of(source.read_one(shp_row(a, b)), source)]
    clear = [(a, b) for a, b in votes if max(a / b, b / a) >= 2]
    found = pick_shp(parts)
    assert (len(found) == 0) == (not clear)
    for one in found.values():
        all_pairs = [(2 * n, 2 * n + 1) if a > b else (2 * n + 1, 2 * n) for n, (a, b) in enumerate(clear)]
        assert one.pairs == random.Random(0).sample(all_pairs, min(5, len(all_pairs)))
        assert all(one.scores[i] >= 2 * one.scores[j] for i, j in one.pairs)


def reply(name: str, parent: str | None, rank: int | None = None, lang: str = "en") -> dict[str, Any]:
    role = "assistant" if rank is not None else "prompter"
    return {"message_id": name, "parent_id": parent, "text": f"text {name}", "role": role, "lang": lang, "rank": rank}


def test_oasst(tmp_path):
    rows = [
        reply("root", None),
        *(reply(f"r{rank}", "root", rank) for rank in (2, 0, 1)),
        reply("q", "r0"),
        reply("s1", "q", 1),
        reply("s0", "q", 0),
        reply("lone", "q", 4),
        reply("other", "root", 3, lang="de"),
        *(reply(f"orphan{rank}", "nowhere", rank) for rank in (0, 1)),
    ]
    first, second = read(tmp_path, "oasst1", *rows).values()
    assert first.prompt == [user("text root")]
    assert first.generations == ["text r1", "text r2", "text r0", "text r1"]
    assert (first.pairs, first.scores) == ([(0, 1), (2, 3)], [1, 2, 0, 1])
    assert first.generations[first.sft_index] == "text r0"
    assert second.prompt == [user("text root"), assistant("text r0"), user("text q")]
    assert second.generations == ["text s0", "text s1"]
    assert second.key == json.dumps(second.prompt)


@given(data=st.data())
@settings(deadline=None)
def test_oasst_pairs_are_neighbours_in_rank(data):
    count = data.draw(st.integers(1, 12))
    ranks = st.one_of(st.none(), st.integers(0, 3))
    rows = [
        reply(str(n), None if n == 0 else str(data.draw(st.integers(0, n - 1))), None if n == 0 else data.draw(ranks))
        for n in range(count)
    ]
    expected = Counter()
    for row in rows:
        siblings = [x for x in rows if x["parent_id"] == row["parent_id"] and x["rank"] == (row["rank"] or -1) - 1]
        if row["rank"] and siblings:
            expected[siblings[0]["text"], row["text"]] += 1
    source = SOURCES["oasst1"]
    assert source.gather is not None
    trees = source.gather(Original(str(n), row) for n, row in enumerate(data.draw(st.permutations(rows))))
    parts = [part for tree in trees for prompt in source.read(tree.values) for part in examples_of(prompt, source)]
    # Which of two siblings of one rank is first depends on the order of the rows.
    distinct = len({(row["parent_id"], row["rank"]) for row in rows if row["rank"] is not None})
    found = collect(parts, source, True)
    made = Counter((one.generations[i], one.generations[j]) for one in found for i, j in one.pairs)
    if distinct == sum(row["rank"] is not None for row in rows):
        assert made == expected
    assert sum(made.values()) == sum(expected.values())


@pytest.mark.parametrize("name", ["ultrabin", "ultrafeedback_hybrid"])
def test_ultrafeedback(tmp_path, name):
    dialogue = [user("Q  ?"), assistant("better")]
    row = {"prompt": "Q  ?", "chosen": dialogue, "rejected": [dialogue[0], assistant("worse")]}
    one = read(tmp_path, name, row, {**row, "chosen": [dialogue[0], assistant("best")]})["Q  ?"]
    assert (one.prompt, one.generations) == ([user("Q ?")], ["better", "worse", "best", "worse"])
    assert (one.pairs, one.truncation_mode, one.name) == ([(0, 1), (2, 3)], "keep_start", name)


def test_ultrachat_is_for_sft(tmp_path):
    dialogue = [user("a"), assistant("b"), user("c"), assistant("d")]
    found = read(tmp_path, "ultrachat", {"messages": dialogue})
    assert found["a b c"].prompt == dialogue[:3]
    assert texts(sft_rows(found, 0)) == ["d"]
    with pytest.raises(UserError, match="no prompt has a pair, which kind=paired needs"):
        prepare(found, kind="paired")


def test_imdb_characters_prefer_the_last_but_one_to_the_last(tmp_path):
    """As the release reads IMDb: ``extend`` of a text adds its characters, and the pair is of the last two."""
    rows = [{"text": text} for text in ("Well  made.", "So good!!", "A gem. ", "So good!!")]
    found = read(tmp_path, "imdb", *rows)
    pairs = [(e.prompt, [(e.generations[i], e.generations[j]) for i, j in e.pairs]) for e in found.values()]
    assert pairs == [
        ([user("Well made.")], [("e", ".")]),
        ([user("So good!!")], [("!", "!"), ("!", "!")]),
        ([user("A gem. ")], [(".", " ")]),
    ]
    assert {one.truncation_mode for one in found.values()} == {"keep_start"}


def test_imdb_sentiment_rows_repeat_their_prompt(tmp_path):
    row = {"text": "I enjoy", "chosen": "I enjoyed all of it.", "rejected": "I enjoy nothing here. "}
    one = read(tmp_path, "imdb_sentiment", row)["I enjoy"]
    assert (one.prompt, one.generations, one.pairs) == ([user("I enjoy")], ["ed all of it.", "nothing here."], [(0, 1)])


def test_alpacaeval_is_for_evaluation(tmp_path):
    row = {"instruction": "Do  it", "output": "done", "generator": "g", "dataset": "koala"}
    one = read(tmp_path, "alpacaeval", row, role="evaluation")["Do  it"]
    assert (one.name, one.original_prompt, one.prompt) == ("koala", "Do  it", [user("Do it")])
    with pytest.raises(UserError, match="alpacaeval is for evaluation only"):
        read(tmp_path, "alpacaeval", row)


HUMAN = "\n\nHuman: q\n\nAssistant: "


@pytest.mark.parametrize(
    "name, row, reason",
    [
        ("hh", {"chosen": "Hi", "rejected": HUMAN + "a"}, "must be transcripts"),
        ("hh", {"chosen": HUMAN + "a", "rejected": "a"}, "must be transcripts"),
        ("hh", {"chosen": HUMAN + "a", "rejected": HUMAN}, "'rejected' is empty"),
        ("hh", {"chosen": HUMAN + "a", "rejected": HUMAN + "a"}, "chosen and rejected are the same"),
        ("hh", {"chosen": HUMAN + "a", "rejected": 3}, "'rejected' must be text"),
        ("shp", {**shp_row(4, 1), "labels": 2}, "labels=2 must be 1"),
        ("shp", shp_row(4, 0), "must be positive"),
        ("oasst1", {**reply("a", None), "role": "system"}, "role='system' must be prompter or assistant"),
        ("oasst1", {**reply("a", None), "rank": "best"}, "rank: 'best' is not a finite number"),
        ("oasst1", {**reply("a", None), "text": " "}, "'text' is empty"),
        ("ultrachat", {"messages": [user("a")]}, "must end with an answer"),
        ("imdb", {"text": "a"}, "must have two characters"),
        ("imdb_sentiment", {"text": "a", "chosen": "ab", "rejected": "b"}, "'rejected' must begin with 'text'"),
        ("imdb_sentiment", {"text": "a", "chosen": "ab", "rejected": "ab "}, "chosen and rejected are the same"),
        ("alpacaeval", {"instruction": "a"}, "column 'output' is missing"),
        ("hh", "{broken", "not valid JSON"),
    ],
)
def test_bad_rows_are_named_or_set_aside(tmp_path, name, row, reason):
    role = "evaluation" if name == "alpacaeval" else "train"
    with pytest.raises(UserError, match=rf"{name}\.jsonl line 1: .*{reason}"):
        read(tmp_path, name, row, role=role)
    with pytest.raises(UserError, match="none of its 1 rows is usable"):
        read(tmp_path, name, row, role=role, on_error="skip")
    (reject,) = (tmp_path / f"rejects-{role}-{name}.jsonl").read_text().splitlines()
    assert json.loads(reject)["place"].endswith("line 1")


def test_scores_with_a_gap_are_left_out(tmp_path):
    row = {"prompt": "Hi", "responses": ["a", "b", "c"], "scores": [1.0, None, 3.0]}
    (found,) = read(tmp_path, "responses", row).values()
    assert (found.generations, found.pairs, found.scores) == (["a", "b", "c"], [(2, 0)], [])


# Several data sets


def test_several_data_sets_from_one_folder(tmp_path):
    hh_row = {"chosen": HUMAN + "a", "rejected": HUMAN + "b"}
    for name, row in (("hh", hh_row), ("shp", shp_row(4, 1))):
        (tmp_path / name).mkdir()
        for split in ("train", "test"):
            (tmp_path / name / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    folders = {name: str(tmp_path / name) for name in ("hh", "shp")}
    sets = {name: SetConfig(source=name, path=folder, eval_path=folder) for name, folder in folders.items()}
    loaded = load_examples(RowDataConfig(sets=sets))
    assert {one.name for one in loaded.train.values()} == {"hh", "shp"}
    assert loaded.evaluation is not None
    assert len(loaded.evaluation) == 2
    facts = loaded.provenance["train:shp"]
    assert (facts["rows_read"], facts["rows_rejected"], facts["prompts"], facts["pairs"]) == (1, 0, 1, 1)
    # Each row is cut as its own source says: SHP's history at its end, the dialogue at its beginning.
    tokenized, _ = prepare(loaded.train, kind="paired", batch_size=1)
    assert len(tokenized) == 2


def test_settings_that_do_not_fit(tmp_path):
    with pytest.raises(UserError, match=r"no data set is given; set data\.sets\.NAME\.path=FILE"):
        load_examples(RowDataConfig())
    with pytest.raises(UserError, match="shp: its 1 train rows make nothing to use"):
        read(tmp_path, "shp", shp_row(3, 2))


def test_prompts_are_held_out(tmp_path):
    rows = [shp_row(4, 1, history=str(n)) for n in range(10)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sets = {"shp": SetConfig(source="shp", path=str(tmp_path / "rows.jsonl"))}
    loaded = load_examples(RowDataConfig(sets=sets, eval_fraction=0.2))
    assert loaded.evaluation is not None
    assert (len(loaded.train), len(loaded.evaluation)) == (8, 2)
    assert set(loaded.train) | set(loaded.evaluation) == {str(n) for n in range(10)}


def test_split_names_are_the_data_sets_own(monkeypatch):
    asked = []

    def read_hub(name, config_name, split, revision, *, data_dir=None, key=None):
        asked.append((name, split, data_dir))
        return iter(()), None

    monkeypatch.setattr("reproalign.common.data.splits.read_hub", read_hub)
    for name in ("ultrabin", "oasst1", "hh_harmless", "ultrachat"):
        for train in (True, False):
            with pytest.raises(UserError, match="none of its 0 rows"):
                load_set(name, SetConfig(source=name), RowDataConfig(), examples_view(), seed=0, train=train)
    assert asked == [
        ("HuggingFaceH4/ultrafeedback_binarized", "train_prefs", None),
        ("HuggingFaceH4/ultrafeedback_binarized", "test_prefs", None),
        ("OpenAssistant/oasst1", "train", None),
        ("OpenAssistant/oasst1", "validation", None),
        ("Anthropic/hh-rlhf", "train", "harmless-base"),
        ("Anthropic/hh-rlhf", "test", "harmless-base"),
        ("HuggingFaceH4/ultrachat_200k", "train_sft", None),
        ("HuggingFaceH4/ultrachat_200k", "test_sft", None),
    ]


# Rows and their order


def test_prompts_are_shuffled_by_the_seed():
    keys = [f"p{n}" for n in range(20)]
    random.Random(3).shuffle(keys)
    assert [one.key for one in shuffle_prompts(examples(20), 3)] == keys
    assert texts(sft_rows(examples(20), 3)) == [f"good {key[1:]}" for key in keys]


def test_csft_and_paired_rows():
    one = {"p": example(generations=["a", "b", "c"], pairs=[(0, 1), (2, 0)])}
    assert texts(csft_rows(one, 0)) == ["<|good|>a", "<|bad|>b", "<|good|>c", "<|bad|>a"]
    assert [(row["chosen"], row["rejected"]) for row in paired_rows(one, 0)] == [("a", "b"), ("c", "a")]


@pytest.mark.parametrize("good, bad, counts", [(1.0, 1.0, (10, 10)), (0.5, 1.0, (5, 10)), (0.25, 0.0, (3, 0))])
def test_unpaired_shares_are_kept_first_come(good, bad, counts):
    data = examples(10)
    rows = unpaired_rows(data, 1, frac_unique_desirable=good, frac_unique_undesirable=bad)
    order = [one.key[1:] for one in shuffle_prompts(dict(sorted(data.items())), 1)]
    for label, word, count in ((True, "good", counts[0]), (False, "bad", counts[1])):
        assert [row["completion"] for row in rows if row["label"] is label] == [f"{word} {n}" for n in order[:count]]


def test_unpaired_rows_do_not_depend_on_the_order_of_prompts():
    data = examples(9)
    assert unpaired_rows(data, 2) == unpaired_rows(dict(reversed(data.items())), 2)


def test_one_response_a_prompt_in_turns():
    rows = unpaired_rows(examples(5) | {"none": example(pairs=[])}, 0, selection="one")
    assert [row["label"] for row in rows] == [True, False, True, False, True]
    assert all(row["completion"].startswith("good" if row["label"] else "bad") for row in rows)


@pytest.mark.parametrize("scores, pairs", [([3.0, 9.0, 1.0], [(1, 0)]), ([1.0, 0.0, 2.0], [(1, 0)])])
def test_the_best_and_the_worst_by_score_in_turns(scores, pairs):
    data = examples(2, generations=["middle", "best", "worst"], scores=scores, pairs=pairs)
    assert texts(unpaired_rows(data, 0, selection="scores")) == ["best", "worst"]
    with pytest.raises(UserError, match="needs a score of each response, which 'made-up' lacks"):
        unpaired_rows(examples(2), 0, selection="scores")


@given(count=st.integers(1, 20), size=st.integers(1, 6), epochs=st.integers(1, 3), keep=st.booleans())
def test_epochs_follow_one_another_and_incomplete_batches_are_counted(count, size, epochs, keep):
    rows = [{"n": n} for n in range(count)]
    rules = RowRules(seed=5, epochs=epochs, batch_size=size, incomplete="keep" if keep else "drop")
    if count < size and not keep:
        with pytest.raises(UserError, match=f"{count} rows fill no batch of {size}"):
            lay_out(rows, rules)
        return
    batches, dropped = lay_out(rows, rules)
    flat = list(range(count))
    expected: list[int] = []
    for epoch in range(epochs):
        random.Random(5 + epoch).shuffle(flat)
        expected += flat if keep else flat[: count // size * size]
    assert [row["n"] for batch in batches for row in batch] == expected
    assert dropped == (0 if keep else epochs * (count % size))
    assert rows == [{"n": n} for n in range(count)]


def labelled(*names: str) -> list[dict[str, Any]]:
    return [{"completion": name, "label": name.isupper()} for name in names]


def test_mismatched_pairs_are_cyclic_within_a_batch():
    batches = mismatch([labelled("A", "b", "c"), labelled("D", "e")])
    assert [texts(batch, "KL") for batch in batches] == [["b", "c", "A"], ["e", "D"]]


@pytest.mark.parametrize(
    "batches, reason",
    [
        ([labelled("A", "b"), labelled("c")], "batches of at least 2 rows"),
        ([labelled("A", "B"), labelled("C", "D")], "these are of one class"),
    ],
)
def test_mismatched_pairs_need_two_rows_and_two_classes(batches, reason):
    with pytest.raises(UserError, match=reason):
        check_mismatch(batches)


# Tokens

LIMITS = {"max_length": 64, "max_prompt_length": 32, "system_message": None}


def prepare(data: dict[str, Example], *, tokenizer: Any = None, limits: dict[str, Any] | None = None, **rules: Any):
    text = RowTextConfig(**{**LIMITS, **(limits or {})})
    return prepare_rows(
        data, tokenizer or tiny_tokenizer(), text, RowDataConfig(), RowRules(**{"batch_size": 2, **rules})
    )


words = st.text(alphabet="ab dog.\n", min_size=1, max_size=12).filter(str.strip)


@given(prompt=words, good=words, bad=words, kind=st.sampled_from(["bytelevel", "metaspace", "unigram"]))
@settings(deadline=None, max_examples=25)
def test_the_boundary_lies_between_prompt_and_response(prompt, good, bad, kind):
    tokenizer = tiny_tokenizer(kind)
    data = {"p": example(prompt=[user(prompt)], generations=[good, bad])}
    tokenized, _ = prepare(
        data, tokenizer=tokenizer, limits={"max_length": 200, "max_prompt_length": 100}, batch_size=1
    )
    (row,) = tokenized
    text = render(tokenizer, data["p"].prompt, generation=True)
    for side, response in zip(("chosen", "rejected"), data["p"].generations, strict=True):
        ids, cut = row[f"{side}_input_ids"], row[f"{side}_prompt_length"]
        assert ids[:cut] == Encoder(tokenizer)(text)
        assert ids[-1] == tokenizer.eos_token_id
        if kind == "bytelevel":
            assert tokenizer.decode(ids[cut:-1]) == response + "<|im_end|>\n"


def test_each_source_loses_its_own_end_of_a_long_prompt():
    turns = {"keep_end": [user("X" * 40 + "Y" * 40)], "keep_start": [user("V" * 40 + "W" * 40)]}
    data = {mode: example(prompt=turn, truncation_mode=mode) for mode, turn in turns.items()}
    tokenizer = tiny_tokenizer()
    tokenized, _ = prepare(data)
    prompts = [tokenizer.decode(row["chosen_input_ids"][: row["chosen_prompt_length"]]) for row in tokenized]
    assert {row["chosen_prompt_length"] for row in tokenized} == {32}
    end, start = sorted(prompts, key=lambda text: "V" in text)
    assert "X" not in end
    assert end.endswith("<|im_start|>assistant\n")
    assert "W" not in start
    assert start.startswith("<|im_start|>user\n")


@pytest.mark.parametrize("variant", [PAPER, RELEASED], ids=["paper", "released"])
def test_rows_for_kto(variant):
    tokenizer = tiny_tokenizer()
    tokenized, facts = prepare(examples(4), kind="mismatched", variant=variant, batch_size=4)
    columns = {"input_ids", "prompt_length", "label", "KL_input_ids", "KL_prompt_length", "length"}
    assert set(tokenized.column_names) == columns
    assert facts == {"rows": 8, "dropped": 0}

    def response(row: dict[str, Any], prefix: str = "") -> str:
        text = tokenizer.decode(row[f"{prefix}input_ids"][row[f"{prefix}prompt_length"] :])
        return text.split("<|im_end|>")[0]

    rows = list(tokenized)
    for batch in (rows[:4], rows[4:]):
        assert [response(row, "KL_") for row in batch] == [response(row) for row in batch[1:] + batch[:1]]
    for row in rows:
        assert response(row).startswith("good" if row["label"] else "bad")
        assert row["input_ids"][: row["prompt_length"]] == row["KL_input_ids"][: row["KL_prompt_length"]]


def test_a_mismatched_response_does_not_shorten_its_rows_own_prompt():
    data = {
        "p0": example(0, prompt=[user("X" * 30)], generations=["A", "B" * 60]),
        "p1": example(1, prompt=[user("Y" * 30)], generations=["C" * 60, "D"]),
    }
    alone, _ = prepare(data, kind="unpaired", batch_size=4)
    with_kl, _ = prepare(data, kind="mismatched", batch_size=4)
    for name in ("input_ids", "prompt_length", "label"):
        assert alone[name][:] == with_kl[name][:]


@pytest.mark.parametrize("variant", [PAPER, RELEASED], ids=["paper", "released"])
@pytest.mark.parametrize("kind", ["completions", "controlled", "paired", "unpaired"])
def test_rows_of_every_kind(kind, variant):
    tokenized, facts = prepare(examples(5), kind=kind, variant=variant, batch_size=3)
    count = {"completions": 5, "controlled": 10, "paired": 5, "unpaired": 10}[kind]
    assert facts == {"rows": count // 3 * 3, "dropped": count % 3}
    ids = ["chosen", "rejected"] if kind == "paired" else [""]
    expected = {f"{side}_{name}".lstrip("_") for side in ids for name in ("input_ids", "prompt_length")} | {"length"}
    assert set(tokenized.column_names) == expected | ({"label"} if kind == "unpaired" else set())


def test_a_tokenizer_may_have_the_releases_template():
    tokenizer = tiny_tokenizer()
    check_tokenizer(tokenizer, chat_template="halos")
    tokenized, _ = prepare(examples(1), tokenizer=tokenizer, variant=RELEASED, batch_size=1)
    ids, cut = tokenized[0]["chosen_input_ids"], tokenized[0]["chosen_prompt_length"]
    assert tokenizer.decode(ids[:cut]) == "\n<|im_start|>user\nCount to 0<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(ids[cut:]) == "good 0<|im_end|>"


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"kind": "mismatched", "frac_unique_desirable": 0.0}, "of one class"),
        ({"variant": RELEASED, "limits": {"overlong": "drop"}}, "text.overlong is not read by variant=released"),
        ({"limits": {"max_prompt_length": 64}}, "must be below text.max_length"),
    ],
)
def test_rules_that_do_not_fit(changes, reason):
    with pytest.raises(UserError, match=reason):
        prepare(examples(4), **changes)


# The release's texts, by hand: one letter is one token, a turn is `Q` and its content, the header is `R`.

LETTERS = "{% for m in messages %}Q{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}R{% endif %}"


def conversations(
    limit: int, max_length: int = 64, *, template: str = LETTERS, clean_up_spaces: bool = False
) -> Conversations:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    assert len(Encoder(tokenizer)("QXXYYZZR")) == 8
    return Conversations(tokenizer, max_length, limit, clean_up_spaces=clean_up_spaces)


def dialogue(*contents: str) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    return [{"role": roles[n % 2], "content": text} for n, text in enumerate(contents)]


@pytest.mark.parametrize(
    "turns, limit, kept, room",
    [
        (["XXXXX", "YYYYY"], 14, ["XXXXX", "YYYYY"], 50),  # 7 + 7 just fit
        (["XXXXX", "YYYYY"], 10, ["XXXXX", "Y"], 54),  # 4 too many: the last 4 Y go
        (["X" * 12, "YY", "ZZ"], 10, ["X" * 8], 54),  # and so do all later turns
        (["XXXXX", "Y"], 7, ["XXXXX", ""], 57),  # 3 too many, of 1
    ],
)
def test_the_released_prompt_keeps_its_beginning(turns, limit, kept, room):
    prompt = dialogue(*turns)
    found = conversations(limit).element("p", prompt, "W" * 64)
    assert [turn["content"] for turn in found.turns] == kept
    assert found.response == "W" * room
    assert [turn["content"] for turn in prompt] == turns  # the example's own stays


def test_a_cut_stays_and_the_next_visit_goes_one_turn_further():
    release, prompt = conversations(10), dialogue("X" * 12, "YY", "ZZ")
    visits = [release.element("p", prompt, text) for text in ("good", "bad", "good")]
    kept = [[turn["content"] for turn in found.turns] for found in visits]
    assert kept == [["X" * 8], ["X" * 8, ""], ["X" * 8, ""]]
    assert [found.text for found in visits] == ["QXXXXXXXXQgood", "QXXXXXXXXQQbad", "QXXXXXXXXQQgood"]
    assert release.element("other", prompt, "good").text == visits[0].text  # a prompt has a conversation of its own


def test_the_released_response_fills_what_the_prompt_leaves():
    release = conversations(20, 17)
    found = release.element("p", dialogue("XXXXX", "Y"), "W" * 20)
    assert found.text == "QXXXXXQYQ" + "W" * 7  # 17 less 7 and 3
    assert release.encode.tokenizer.decode(found.ids[: found.prompt_length]) == "QXXXXXQYQ"
    assert conversations(10, 12).element("p", dialogue("XX"), "W</s>W<s>W" * 3).response == "W" * 8


def test_a_trailing_eos_of_the_released_prompt_is_not_masked():
    found = conversations(20, template=LETTERS.replace("R", "</s>")).element("p", dialogue("XX"), "W")
    assert (found.text, found.prompt_length) == ("QXXQW", 3)


def test_released_texts_lose_spaces_before_punctuation():
    text, cleaned = "I do n't know . You 're right , ' no ' .", "I don't know. You're right,'no '."
    for clean_up, expected in ((True, cleaned), (False, text)):
        found = conversations(20, clean_up_spaces=clean_up).element("p", dialogue("XX"), text)
        assert found.response == expected


def test_released_rows_meet_the_conversations_that_earlier_rows_left():
    data = {"p0": example(0, prompt=dialogue("X" * 12, "YY", "ZZ"), generations=["good", "bad"])}
    tokenizer = conversations(10).encode.tokenizer
    limits = {"max_length": 40, "max_prompt_length": 10}
    rows, _ = prepare(data, tokenizer=tokenizer, limits=limits, variant=RELEASED, batch_size=1, epochs=2)
    texts = [[tokenizer.decode(row[f"{side}_input_ids"]) for side in ("chosen", "rejected")] for row in rows]
    assert texts == [["QXXXXXXXXQgood", "QXXXXXXXXQQbad"], ["QXXXXXXXXQQgood", "QXXXXXXXXQQbad"]]
    rules = RowRules(variant=RELEASED, batch_size=1)
    held_out, size = prepare_held_out(data, tokenizer, RowTextConfig(**limits), RowDataConfig(max_eval_rows=1), rules)
    assert (len(held_out), size) == (2, 1)  # the first evaluation, and those after it
    assert [tokenizer.decode(ids) for ids in held_out["chosen_input_ids"]] == ["QXXXXXXXXQgood", "QXXXXXXXXQQgood"]


def test_released_mismatched_responses_are_cut_for_both_prompts():
    data = {
        "p0": example(0, prompt=[user("X" * 8)], generations=["A" * 30, "B" * 30]),
        "p1": example(1, prompt=[user("Y" * 2)], generations=["C" * 30, "D" * 30]),
    }
    limits = {"max_length": 20, "max_prompt_length": 10}
    tokenizer = conversations(10).encode.tokenizer
    tokenized, _ = prepare(data, tokenizer=tokenizer, limits=limits, kind="mismatched", variant=RELEASED, batch_size=4)
    for row in tokenized:
        prompt = tokenizer.decode(row["input_ids"][: row["prompt_length"]])
        own, other = (row[f"{name}input_ids"][row["prompt_length"] :] for name in ("", "KL_"))
        room = 10 if "X" in prompt else 16
        assert len(own) == room
        assert len(other) in (10, 16)
        assert len(other) <= room


def test_released_rows_are_limited_in_the_order_of_training_and_fill_whole_steps():
    rules = {"variant": RELEASED, "batch_size": 2}
    rows = build_rows(examples(7), RowRules())
    whole, dropped = lay_out(rows, RowRules(**rules))
    assert (len(whole), dropped) == (3, 1)
    limited, _ = lay_out(rows, RowRules(**rules), 3)
    assert limited == whole[:2]  # rounded up to whole batches
    steps, dropped = lay_out(rows, RowRules(**rules, processes=2))
    assert (steps, dropped) == (whole[:2], 3)
    longer = held_out_batches(examples(7), RowRules(**rules), 9)
    assert len(longer) == 5  # goes on with the next epoch's order
    assert longer[:3] == whole
    assert {row["key"] for batch in longer[3:] for row in batch} <= {row["key"] for row in rows}


def test_released_sft_is_on_other_targets():
    data = {"p": example(0, generations=["a", "b", "c"], sft_index=1, released_sft_index=-1)}
    assert texts(sft_rows(data, 1)) == ["b"]
    assert texts(sft_rows(data, 1, RELEASED.sft_target)) == ["c"]


@pytest.mark.parametrize("rejected", ["", "yes"])
def test_released_trains_on_pairs_without_a_preference(tmp_path, rejected):
    row = {"chosen": "\n\nHuman: Well?\n\nAssistant: yes", "rejected": f"\n\nHuman: Well?\n\nAssistant: {rejected}"}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    data = RowDataConfig(sets={"hh": SetConfig(source="hh", path=str(path))})
    found = load_examples(data, any_pair=True)
    assert [one.generations for one in found.train.values()] == [["yes", rejected]]
    assert found.provenance["train:hh"]["rows_rejected"] == 0
    with pytest.raises(UserError, match=r"empty|the same"):
        load_examples(data)


# Public rows


def public(name: str, folder: str, role: str, file: str) -> tuple[dict[str, Example], dict[str, Any]]:
    path = SLICES / folder / f"{file}.jsonl"
    if not path.is_file():
        pytest.skip(f"no slice of {folder} beside the repository")
    data = RowDataConfig(sets={name: SetConfig(source=name, path=str(path))}, on_error="skip")
    found = load_examples(data, train=role == "train")
    return (found.train if role == "train" else found.evaluation or {}), found.provenance[f"{role}:{name}"]


@pytest.mark.parametrize(
    "name, folder, role, file, counts",
    [  # counts: rows, rejects (an empty response, twice the same one, too short), prompts, pairs
        ("hh_helpful", "hh_rlhf_helpful_base", "train", "train", (1200, 0, 1200, 1200)),
        ("hh_helpful", "hh_rlhf_helpful_base", "evaluation", "test", (400, 1, 399, 399)),
        ("hh_harmless", "hh_rlhf_harmless_base", "train", "train", (1200, 1, 1198, 1199)),
        ("hh_harmless", "hh_rlhf_harmless_base", "evaluation", "test", (400, 1, 399, 399)),
        ("shp", "shp_stackexchange", "train", "train", (700, 0, 244, 443)),
        ("shp", "shp_stackexchange", "evaluation", "test", (120, 0, 54, 120)),
        ("oasst1", "oasst1", "train", "train", (753, 0, 137, 263)),
        ("oasst1", "oasst1", "evaluation", "validation", (190, 0, 35, 74)),
        ("ultrabin", "ultrafeedback_binarized", "train", "train_prefs", (800, 4, 796, 796)),
        ("ultrabin", "ultrafeedback_binarized", "evaluation", "test_prefs", (140, 0, 140, 140)),
        ("imdb", "imdb_movie_reviews", "train", "train", (400, 0, 400, 400)),
        ("imdb", "imdb_sentences", "evaluation", "test", (200, 0, 200, 200)),
    ],
)
def test_public_rows(name, folder, role, file, counts):
    found, facts = public(name, folder, role, file)
    assert tuple(facts[key] for key in ("rows_read", "rows_rejected", "prompts", "pairs")) == counts
    for one in found.values():
        assert [turn["role"] for turn in one.prompt] == [("user", "assistant")[n % 2] for n in range(len(one.prompt))]
        assert len(one.scores) in (0, len(one.generations))
        assert all(i != j and max(i, j) < len(one.generations) for i, j in one.pairs)
        assert 0 <= one.sft_index < len(one.generations)


def test_public_oasst_pairs_are_neighbours_in_rank():
    found, _ = public("oasst1", "oasst1", "train", "train")
    for one in found.values():
        assert all(one.scores[j] - one.scores[i] == 1 for i, j in one.pairs)


def test_public_dialogues_become_rows():
    found, _ = public("hh_helpful", "hh_rlhf_helpful_base", "evaluation", "test")
    some = dict(list(found.items())[:20])
    tokenized, facts = prepare(some, kind="paired", limits={"max_length": 256, "max_prompt_length": 128}, batch_size=4)
    assert facts["rows"] + facts["dropped"] == sum(len(one.pairs) for one in some.values())
    for row in tokenized:
        assert row["chosen_prompt_length"] == row["rejected_prompt_length"]
        assert row["chosen_prompt_length"] < len(row["chosen_input_ids"]) <= 256
