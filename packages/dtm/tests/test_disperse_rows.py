"""From public data to instruction rows: what a row becomes, what does not fit, what is held out."""

from __future__ import annotations

import json
from decimal import ROUND_CEILING, Decimal
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from reproalign.common.config.data import RowsConfig
from reproalign.common.data.holdout import held_out, prompt_key
from reproalign.common.data.reading import Row
from reproalign.common.data.records import RowError
from reproalign.common.data.sources import SOURCES, recognise
from reproalign.common.errors import UserError
from reproalign.dtm.disperse.extract import REJECTS, extract
from reproalign.dtm.disperse.first_turn import FirstTurnRules, first_turn, instruction_row
from reproalign.dtm.disperse.settings import check_sets
from reproalign.dtm.rows import HELD_OUT, ROWS

PAPER, RELEASED = FirstTurnRules(), FirstTurnRules(unchecked=True)


def chat(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": f"{role} {place}"} for place, role in enumerate(roles)]


def write(path: Path, *rows: object) -> str:
    text = "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return str(path)


def sets_of(**paths: str) -> dict[str, RowsConfig]:
    return {name: RowsConfig(path=path) for name, path in paths.items()}


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


@pytest.mark.parametrize(
    ("roles", "taken"),
    [
        (["user", "assistant"], (0, 1)),
        (["user", "assistant", "user", "assistant"], (0, 1)),
        (["system", "user", "assistant"], (1, 2)),
        (["assistant", "user"], None),
        (["user", "user", "assistant"], None),
        (["system", "assistant"], None),
        (["system", "system", "user", "assistant"], None),
        (["tool", "user", "assistant"], None),
    ],
)
def test_first_turn(roles, taken):
    found = first_turn(chat(*roles))
    if taken is None:
        assert found is None
    else:
        asked, answered = (f"{roles[place]} {place}" for place in taken)
        assert found == {"instruction": asked, "input": "", "output": answered}
        assert list(found) == ["instruction", "input", "output"]


@pytest.mark.parametrize("roles", [[], ["user"], ["system"], ["system", "user"]])
def test_a_chat_that_ends_too_early_is_an_error(roles):
    with pytest.raises(RowError, match="ends too early"):
        first_turn(chat(*roles))


def test_a_system_text_can_be_kept():
    assert first_turn(chat("system", "user", "assistant"), system="keep")["instruction"] == "system 0\n\nuser 1"


ROWS_OF = {
    "messages": {"messages": chat("user", "assistant")},
    "alpaca": {"instruction": "user 0", "input": "", "output": "assistant 1"},
    "conversations": {"conversations": [{"from": "human", "value": "user 0"}, {"from": "gpt", "value": "assistant 1"}]},
    "flan_cot": {"question": "user 0", "rationale": "why", "answer": "4"},
    "camel": {"topic;": "x", "message_1": "user 0", "message_2": "assistant 1"},
    "baize": {"topic": "t", "input": "A talk.\n[|Human|] user 0\n[|AI|] assistant 1\n[|Human|] "},
    "oasst1_trees": {
        "message_tree_id": "a",
        "prompt": {
            "text": "user 0",
            "role": "prompter",
            "replies": [
                {"text": "worse", "role": "assistant", "rank": 1},
                {"text": "assistant 1", "role": "assistant", "rank": 0},
                {"text": "unranked", "role": "assistant", "rank": None},
            ],
        },
    },
}


@pytest.mark.parametrize("name", ROWS_OF)
def test_every_source_is_recognised_and_makes_a_row(name):
    source = recognise(ROWS_OF[name])
    assert source is SOURCES[name]
    row = ROWS_OF[name]
    if source.gather:
        (tree,) = source.gather([Row("line 1", row)])
        row = tree.values
    answer = "why\nThe answer is 4." if name == "flan_cot" else "assistant 1"
    assert instruction_row(source.read(row), source, PAPER) == {"instruction": "user 0", "input": "", "output": answer}


def test_lima_alternates_without_roles():
    source = SOURCES["conversations"]
    assert instruction_row(source.read({"conversations": ["a", "b"]}), source, PAPER)["output"] == "b"


def test_messages_of_a_tree_become_its_prompt_and_best_reply(tmp_path):
    def message(name: str, parent: str | None, rank: int | None, tree: str = "t") -> dict:
        role = "prompter" if parent is None else "assistant"
        return {
            "message_id": name,
            "parent_id": parent,
            "message_tree_id": tree,
            "role": role,
            "text": name,
            "rank": rank,
        }

    rows = [message("q", None, None), message("second", "q", 1), message("first", "q", 0), message("later", "first", 0)]
    path = write(tmp_path / "o.jsonl", *rows, message("q2", None, None, "u"))
    found = extract(sets_of(oasst=path), tmp_path, rules=PAPER, on_error="skip")
    assert read(tmp_path / ROWS) == [{"instruction": "q", "input": "", "output": "first", "source": "oasst"}]
    assert found.rejected == 1
    assert read(tmp_path / REJECTS) == [{"place": f"{path} line 5", "reason": "the prompt has no reply"}]


def test_released_rows_are_the_released_bytes(tmp_path):
    """Misfits stay as empty objects, text is as it was, and there are three keys."""
    odd = '\u2028 "q" \\ 中文\t\r\n'
    rows = [
        {"dataset": "x", "messages": [{"role": "user", "content": odd}, {"role": "assistant", "content": None}]},
        {"messages": chat("assistant", "user")},
    ]
    found = extract(sets_of(s=write(tmp_path / "a.jsonl", *rows)), tmp_path, rules=RELEASED, on_error="raise")
    expected = json.dumps({"instruction": odd, "input": "", "output": None}, ensure_ascii=False) + "\n{}\n"
    assert (tmp_path / ROWS).read_bytes() == expected.encode()
    assert (found.rows, found.placeholders, found.rejected) == (2, 1, 0)
    assert [found.sources[code] for code in found.source_of] == ["x", "s"]


MISFITS = [
    ({"messages": chat("assistant", "user")}, "its first turns are assistant, user"),
    ({"messages": chat("user")}, "ends too early"),
    ({"messages": "hello"}, "must be a list"),
    ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": " \n"}]}, "output is empty"),
    ({"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "a"}]}, "instruction is empty"),
    ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": None}]}, "output is not text"),
    ("{broken", "not valid JSON"),
]


@pytest.mark.parametrize(("row", "reason"), MISFITS)
def test_a_misfit_is_listed_with_its_place_and_reason(tmp_path, row, reason):
    path = write(tmp_path / "a.jsonl", ROWS_OF["messages"], row, ROWS_OF["messages"])
    found = extract(sets_of(s=path), tmp_path, rules=PAPER, on_error="skip")
    assert (found.rows, found.rejected) == (2, 1)
    (reject,) = read(tmp_path / REJECTS)
    assert reject["place"] == f"{path} line 2"
    assert reason in reject["reason"]


@pytest.mark.parametrize(("row", "reason"), MISFITS)
def test_or_it_ends_the_run(tmp_path, row, reason):
    path = write(tmp_path / "a.jsonl", ROWS_OF["messages"], row)
    with pytest.raises(UserError, match="line 2") as raised:
        extract(sets_of(s=path), tmp_path, rules=PAPER, on_error="raise")
    assert reason in str(raised.value)
    assert {entry.name for entry in tmp_path.iterdir()} == {"a.jsonl"}


def test_several_sets_stay_in_order_and_keep_their_sources(tmp_path):
    alpaca = write(tmp_path / "alpaca.jsonl", *({**ROWS_OF["alpaca"], "output": str(n)} for n in range(3)))
    tulu = write(tmp_path / "tulu.jsonl", {**ROWS_OF["messages"], "dataset": "flan_v2"})
    sets = {"mine": RowsConfig(path=alpaca, first=2), "tulu": RowsConfig(path=tulu)}
    found = extract(sets, tmp_path, rules=PAPER, on_error="raise")
    rows = read(tmp_path / ROWS)
    assert [(row["output"], row["source"]) for row in rows] == [
        ("0", "mine"),
        ("1", "mine"),
        ("assistant 1", "flan_v2"),
    ]
    assert found.set_sizes == {"mine": 2, "tulu": 1}
    assert found.sets["mine"]["source"] == "alpaca"
    assert found.sets["mine"]["rows_read"] == 2


def share(fraction: float, count: int) -> int:
    """Rounded up, of the number as it is written."""
    return int((Decimal(str(fraction)) * count).to_integral_value(ROUND_CEILING))


@given(
    prompts=st.lists(st.integers(0, 30), min_size=2, max_size=60).filter(lambda found: len(set(found)) > 1),
    fraction=st.floats(0.01, 0.6),
    seed=st.integers(0, 99),
)
def test_held_out_prompts_are_no_training_prompts(tmp_path_factory, prompts, fraction, seed):
    folder = tmp_path_factory.mktemp("rows")
    rows = [{"instruction": f"question {prompt}", "output": str(place)} for place, prompt in enumerate(prompts)]
    sets = sets_of(s=write(folder / "a.jsonl", *rows))
    distinct = len(set(prompts))
    if share(fraction, distinct) == distinct:
        return
    found = extract(sets, folder, rules=PAPER, on_error="raise", eval_fraction=fraction, seed=seed)
    training, held = read(folder / ROWS), read(folder / HELD_OUT)
    asked = [{row["instruction"] for row in part} for part in (training, held)]
    assert not asked[0] & asked[1]
    assert len(asked[1]) == share(fraction, distinct)
    assert (found.rows, found.held_out) == (len(training), len(held))
    assert [int(row["output"]) for row in training] == sorted(int(row["output"]) for row in training)
    assert {int(row["output"]) for row in training + held} == set(range(len(prompts)))


@example(keys=list(range(100)), fraction=0.07)
@given(keys=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=50), fraction=st.floats(0.001, 1))
def test_held_out_share(keys, fraction):
    mask = held_out(np.array(keys, np.uint64), fraction)
    assert len({key for key, held in zip(keys, mask, strict=True) if held}) == share(fraction, len(set(keys)))


def test_other_seeds_hold_out_other_prompts():
    rows = [{"instruction": str(number), "input": ""} for number in range(100)]
    keys = [[prompt_key(seed, row["instruction"], row["input"]) for row in rows] for seed in (1, 2)]
    masks = [held_out(np.array(found, np.uint64), 0.2) for found in keys]
    assert (masks[0] != masks[1]).any()


def test_released_held_out_rows_name_their_source(tmp_path):
    rows = [{"dataset": f"d{n % 2}", "messages": [*chat("system"), *chat("user", "assistant")]} for n in range(6)]
    for number, row in enumerate(rows):
        row["messages"][1]["content"] = str(number)
    path = write(tmp_path / "a.jsonl", *rows)
    extract(sets_of(s=path), tmp_path, rules=RELEASED, on_error="raise", eval_fraction=0.5)
    assert all(row.keys() == {"instruction", "input", "output"} for row in read(tmp_path / ROWS))
    assert all(row["source"] == f"d{int(row['instruction']) % 2}" for row in read(tmp_path / HELD_OUT))


def test_empty_objects_of_the_release_are_not_held_out(tmp_path):
    """They have no prompt, and a held-out file with them could not be measured."""
    rows = [{"messages": chat("user", "user" if n % 2 else "assistant")} for n in range(8)]
    for number, row in enumerate(rows):
        row["messages"][0]["content"] = str(number)
    path = write(tmp_path / "a.jsonl", *rows)
    found = extract(sets_of(s=path), tmp_path, rules=RELEASED, on_error="raise", eval_fraction=0.75)
    assert (found.rows, found.held_out, found.placeholders) == (5, 3, 4)
    assert sum(row == {} for row in read(tmp_path / ROWS)) == 4
    assert all(row["instruction"] for row in read(tmp_path / HELD_OUT))


@pytest.mark.slow
def test_every_row_may_have_a_source_of_its_own(tmp_path):
    """As where the source is an address; there are more of them than 16 bits count."""
    rows = [{"instruction": "a", "output": "b", "source": str(number)} for number in range(2**16 + 1)]
    found = extract(sets_of(s=write(tmp_path / "a.jsonl", *rows)), tmp_path, rules=PAPER, on_error="raise")
    assert len(found.sources) == len(rows)
    assert found.source_of[-1] == 2**16


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"path": "none.jsonl"}, "no such file"),
        ({"source": "flan_cot"}, "neither path nor name"),
        ({}, "says nowhere what is to be read"),
        ({"source": "alpacaeval"}, "for evaluation only"),
    ],
)
def test_wrong_sets(entry, message):
    with pytest.raises(UserError, match=r"data\.sets\.x") as raised:
        check_sets({"x": RowsConfig(**entry)})
    assert message in str(raised.value)


def test_without_sets_it_is_the_papers_corpus():
    (found,) = check_sets({}).values()
    assert SOURCES[str(found.source)].hub == "allenai/tulu-v2-sft-mixture"


def test_unknown_columns_are_named(tmp_path):
    sets = sets_of(s=write(tmp_path / "a.jsonl", {"prompt_x": 1, "y": 2}))
    with pytest.raises(UserError, match=r"columns prompt_x, y are those of no known source; set data\.sets\.s\.source"):
        extract(sets, tmp_path, rules=PAPER, on_error="skip")
