"""What a newcomer sees: names whole at any width, logs as lines, and how far a training goes before it starts."""

from __future__ import annotations

import logging
import math

import pytest
from datasets import Dataset
from toy.cli import main as toy
from transformers import TrainingArguments

from reproalign.common import console
from reproalign.common.cli import main as reproalign
from reproalign.common.command.recipes import ANYWHERE, family, listing
from reproalign.common.models.quiet import quiet_transformers
from reproalign.common.training.plan import count_tokens, memory_bytes, training_plan
from reproalign.common.training.watch import log_line

HEADERS = {
    "pythia-1.4b-ra-dpo2-cvar0.97-alpha0.5": {"verb": "train", "title": "t" * 90, "expected": "KL 0.5"},
    "pythia-1.4b-sft": {"verb": "train", "title": "SFT", "expected": "no number is known"},
    "smoke": {"verb": "train", "title": "seconds", "paper": "none"},
    "gpt2-large-tdpo1": {"verb": "train", "title": "TDPO1"},
}


@pytest.mark.parametrize("width", [60, 80, 140, 100_000])
def test_a_recipe_is_one_line_with_its_whole_name(width):
    lines = listing(HEADERS, width)
    assert [line for line in lines if not line.startswith(" ")] == [
        "pythia-1.4b (2)",
        "gpt2-large (1)",
        f"{ANYWHERE} (1)",
    ]
    for name in HEADERS:
        (line,) = [line for line in lines if line.split()[0] == name]
        assert len(line) <= width


def test_a_file_gets_everything():
    assert listing(HEADERS, 100_000)[1].endswith(f"{'t' * 90}; expected: KL 0.5")


def test_brackets_in_a_path_are_no_markup(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = "runs[bold] of :b: [/b]"
    words = ["trainer.max_steps=1", "trainer.save_strategy=no", "data.max_rows=4"]
    assert toy(["train", "experiment=smoke", *words, f"output_dir={folder}"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("model: ")  # nothing of libraries
    assert all(lines)
    assert reproalign(["show", folder]) == 0
    shown = [line for line in capsys.readouterr().out.splitlines() if folder in line]
    assert len(shown) == 3  # the command, the head of the table, output_dir


def test_in_a_file_progress_is_lines_with_the_time_left_and_quiet_has_none(monkeypatch, capsys):
    monkeypatch.setattr(console, "SECONDS", -1)
    monkeypatch.setattr(console, "TICK", -1)
    assert list(console.track("abc", "reading [x]")) == [*"abc"]
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in lines] == [f"reading [x]: {number} of 3" for number in (1, 2, 3)]
    assert lines[-1].endswith("0:00:00 left")
    with console.counting("merging", 4_000_000, done=1_000_000, size=True) as advance:
        advance(1_000_000)
    assert capsys.readouterr().err.startswith("merging: 2.0 MB of 4.0 MB")
    monkeypatch.setenv(console.QUIET, "1")
    assert list(console.track(iter("abc"), "reading")) == [*"abc"]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("rows", "shown"),
    [
        ("lm_head.weight | UNEXPECTED | \nscore.weight   | MISSING    | ", False),
        ("lm_head.weight | UNEXPECTED | \nmodel.norm.weight | MISSING | ", True),
    ],
)
def test_only_heads_may_differ_without_a_word_when_weights_are_loaded(rows, shown):
    quiet_transformers()
    handler = logging.getLogger("transformers").handlers[0]
    report = f"\x1b[1mM LOAD REPORT\x1b[0m from: x\nKey            | Status     | \n---------------+----\n{rows}\n"
    assert bool(handler.filter(logging.makeLogRecord({"msg": report}))) == shown


@pytest.mark.parametrize(
    ("name", "kin"),
    [
        ("alpaca-7b-align-llama-2-7b-more", "alpaca-7b"),
        ("smollm2-135m-raft", ANYWHERE),
        ("zephyr-7b-beta-hma", "zephyr-7b"),
    ],
)
def test_families_go_by_the_model(name, kin):
    assert family(name) == kin


def test_a_line_of_logs_has_what_fits_and_the_epoch_last():
    logs = {"epoch": 0.5, "loss": 0.61234567, "note": "text", "rewards/margins": math.pi}
    assert log_line(logs, 5, 10, 200) == "step 5/10  loss 0.6123  rewards/margins 3.142  epoch 0.5"
    assert log_line(logs, 5, 10, 30) == "step 5/10  loss 0.6123"


@pytest.mark.parametrize(
    ("given", "rows", "processes", "steps", "epochs"),
    [
        ({"num_train_epochs": 3.0}, 10, 1, 9, 3.0),  # 5 batches of 2, of which 2 make a step: 3 steps an epoch
        ({"max_steps": 4}, 10, 1, 4, 4 / 3),
        ({"num_train_epochs": 1.0, "dataloader_drop_last": True}, 10, 2, 1, 1.0),
        ({"num_train_epochs": 0.5}, 100, 4, 4, 4 / 7),
    ],
)
def test_steps_are_counted_as_the_trainer_counts_them(tmp_path, given, rows, processes, steps, epochs):
    arguments = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=2, gradient_accumulation_steps=2, use_cpu=True, **given
    )
    plan = training_plan(arguments, Dataset.from_dict({"input_ids": [[1, 2, 3]] * rows}), processes=processes)
    assert (plan.steps, plan.epochs, plan.global_batch) == (steps, pytest.approx(epochs), 4 * processes)
    assert plan.tokens == 3 * rows


def test_rows_held_out_are_those_of_all_sets(tmp_path):
    rows = Dataset.from_dict({"input_ids": [[1]] * 3})
    arguments = TrainingArguments(str(tmp_path), use_cpu=True)
    for held_out, count in ((None, 0), (rows, 3), ({}, 0), ({"a": rows, "b": rows}, 6)):
        assert training_plan(arguments, rows, held_out).held_out == count


def test_tokens_are_those_of_all_sequences():
    pairs = Dataset.from_dict(
        {"chosen_input_ids": [[1], [1, 2]], "rejected_input_ids": [[1, 2, 3], []], "length": [3, 2]}
    )
    assert count_tokens(pairs) == 6
    assert count_tokens(pairs.select([1])) == 2
    assert count_tokens([1, 2]) is None


def test_memory_is_weights_gradients_and_two_moments():
    assert memory_bytes(1000, 1000, 4) == 16_000
    assert memory_bytes(1000, 10, 2, copies=2) == 2 * (2000 + 30)  # LoRA beside a second model
    assert memory_bytes(1000, 1000, 4, sharded=(4, 4, 4)) == 4_000
