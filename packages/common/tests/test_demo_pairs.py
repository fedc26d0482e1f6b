"""The demo's pairs are what their generator makes, and their margins are what its price list says."""

from __future__ import annotations

import json
import random
import runpy
from collections import Counter
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

GENERATOR = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("make_demo_pairs.py"))))
BANK = {task.prompt: task for task in GENERATOR.tasks()}


def shipped(part: str) -> list[dict[str, Any]]:
    text = files("reproalign.common.demo").joinpath(f"pairs-{part}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


PAIRS = {"train": shipped("train"), "eval": shipped("eval")}


def text_of(turns: list[dict[str, str]], role: str) -> str:
    (turn,) = turns
    assert turn["role"] == role
    return turn["content"]


def test_the_shipped_files_are_the_generators(tmp_path):
    GENERATOR.write_pairs(tmp_path)
    for name in ("pairs-train.jsonl", "pairs-eval.jsonl"):
        assert (tmp_path / name).read_bytes() == files("reproalign.common.demo").joinpath(name).read_bytes()


def test_sizes_and_no_prompt_twice_nor_in_both_parts():
    rows = [*PAIRS["train"], *PAIRS["eval"]]
    assert (len(PAIRS["train"]), len(PAIRS["eval"])) == (GENERATOR.TRAIN, GENERATOR.EVALUATION)
    assert len({text_of(row["prompt"], "user") for row in rows}) == len(rows)
    assert len({row["prompt_id"] for row in rows}) == len(rows)


@pytest.mark.parametrize("part", PAIRS)
def test_the_better_response_is_the_chosen_one_and_margins_spread(part):
    margins = Counter(row["score_chosen"] - row["score_rejected"] for row in PAIRS[part])
    assert set(margins) == set(range(1, GENERATOR.FULL_MARKS))
    assert max(margins.values()) < 0.3 * len(PAIRS[part])
    for row in PAIRS[part]:
        assert 1 <= row["score_rejected"] < row["score_chosen"] <= GENERATOR.FULL_MARKS


@pytest.mark.parametrize("part", PAIRS)
def test_no_single_sign_gives_the_chosen_response_away(part):
    """Chosen responses have faults too, and are neither always the longer nor always the shorter ones."""
    rows = PAIRS[part]
    pairs = [(text_of(row["chosen"], "assistant"), text_of(row["rejected"], "assistant")) for row in rows]
    assert 0.2 < sum(len(chosen) > len(rejected) for chosen, rejected in pairs) / len(rows) < 0.8
    assert sum(row["score_chosen"] < GENERATOR.FULL_MARKS for row in rows) / len(rows) > 0.2
    openings = Counter(" ".join(chosen.split()[:2]) for chosen, _ in pairs)
    assert max(openings.values()) < 0.15 * len(rows)


@pytest.mark.parametrize("prompt", [task.prompt for task in BANK.values() if task.prompt.startswith("Name ")])
def test_lists_leave_out_what_they_are_charged_for(prompt):
    task, kind = BANK[prompt], prompt.rstrip(".").split(" ", 2)[2]
    for faults in ({}, {"bare": 1}, {"missing": 1}, {"missing": 2}, {"wrong": 1}, {"missing": 1, "shouting": 1}):
        response = GENERATOR.respond(task, random.Random(0), faults)
        text = response.text.lower().replace(f"some {kind}", "")
        named = sum(item.lower() in text for item in GENERATOR.LISTS[kind])
        assert named == (0 if "wrong" in faults else task.total - faults.get("missing", 0)), response.text


def test_every_fault_has_its_price_and_can_be_seen():
    rng = random.Random(1)
    seen: Counter[str] = Counter()
    for task in BANK.values():
        faults = GENERATOR.draw_faults(task, rng, 3)
        seen.update(faults.keys())
        response = GENERATOR.respond(task, rng, faults)
        assert (
            response.score
            == GENERATOR.FULL_MARKS - sum(GENERATOR.PENALTIES[name] * times for name, times in faults.items())
            >= 1
        )
        lowered = response.text.lower()
        assert any(remark.lower() in lowered for remark in GENERATOR.RUDE) == ("rude" in faults)
        assert any(remark.lower().rstrip(".") in lowered for remark in GENERATOR.OFF_TOPIC) == ("off_topic" in faults)
        assert (response.text.isupper() or not response.text.strip("!. 0123456789,")) >= ("shouting" in faults)
        assert response.text.endswith("!!!") == ("shouting" in faults)
    assert set(seen) == set(GENERATOR.PENALTIES)


def test_a_full_answer_to_every_question_is_free_of_faults():
    for task in BANK.values():
        response = GENERATOR.respond(task, random.Random(2), {})
        assert response.score == GENERATOR.FULL_MARKS
        assert 1 <= len(response.text.split()) <= 60
        assert not response.text.endswith("!!!")


def test_arithmetic_is_right_unless_it_is_charged_as_wrong():
    compute = {"plus": int.__add__, "minus": int.__sub__, "times": int.__mul__}
    for part in PAIRS.values():
        for row in part:
            words = text_of(row["prompt"], "user").rstrip("?").split()
            if words[:2] == ["What", "is"] and len(words) == 5 and words[3] in compute:
                right = str(compute[words[3]](int(words[2]), int(words[4])))
                for side in ("chosen", "rejected"):
                    said = text_of(row[side], "assistant").replace(".", " ").replace("!", " ").split()
                    answered = said[-1] == right
                    points_off = GENERATOR.FULL_MARKS - row[f"score_{side}"]
                    assert answered or points_off >= min(
                        GENERATOR.PENALTIES["wrong"], GENERATOR.PENALTIES["off_topic"]
                    ), row
