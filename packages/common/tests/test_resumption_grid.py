"""Where a run stops makes no difference: the same rows in the same order, the same weights bit for bit.

The grid that users of OpenRLHF asked for (its issue 1350): rows that fill the last batch or not, accumulation that
fills an epoch or is cut off at its end, a stop early, at the seam of two epochs, or late.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from toy.cli import main

from reproalign.common.records import fingerprint_folder
from reproalign.common.testing import run_command
from reproalign.common.training.pairs import PairTrainer

ROWS = {"last batch full": 16, "last batch not full": 15}  # in batches of 2: 8 an epoch
HARDEST = "epoch cut off"
ACCUMULATED = {"epoch filled": 2, HARDEST: 3}  # batches a step: 4 steps an epoch, and 3
# What every process begins with: the one that saves is signalled meanwhile.
SIGNALLED = """
import os, signal, sys

def signal_who_saves(event, arguments):
    if event == "os.mkdir" and os.path.basename(os.fspath(arguments[0])) == "checkpoint-{stop}":
        os.kill(os.getpid(), signal.SIGTERM)

sys.addaudithook(signal_who_saves)
"""
STOPS = {"early": 0.1, "at the seam": 0.5, "late": 0.8}


def words(rows: int, accumulated: int) -> list[str]:
    given = [f"data.max_rows={rows}", f"trainer.gradient_accumulation_steps={accumulated}"]
    steps = ["trainer.num_train_epochs=2", "trainer.max_steps=-1", "trainer.save_steps=1"]
    schedule = ["trainer.per_device_train_batch_size=2", "trainer.lr_scheduler_type=constant"]
    return ["train", "experiment=smoke", "trainer.save_total_limit=1", *given, *steps, *schedule]


def run(folder: Path, given: list[str], monkeypatch, stop: int | None = None) -> list[list[list[int]]]:
    """Train, and return the tokens of every batch; a run that is to stop does so in the step after ``stop``."""
    original, batches = PairTrainer.training_step, []

    def watched(self, model, inputs, *args, **kwargs):
        if self.state.global_step == stop:
            raise KeyboardInterrupt
        batches.append(inputs["input_ids"].tolist())
        return original(self, model, inputs, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(PairTrainer, "training_step", watched)
        assert main([*given, f"output_dir={folder}"]) == (0 if stop is None else 130)
    return batches


def told(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [
        {name: value for name, value in row.items() if "runtime" not in name and "per_s" not in name} for row in rows
    ]


GRID = [
    pytest.param(rows, count, id=f"{filled}, {cut}", marks=() if rows % 2 and cut == HARDEST else pytest.mark.slow)
    for filled, rows in ROWS.items()
    for cut, count in ACCUMULATED.items()
]


@pytest.mark.parametrize(("rows", "accumulated"), GRID)
def test_one_process_that_stops_three_times_is_as_one_that_never_did(tmp_path, monkeypatch, rows, accumulated):
    given, whole, stopped = words(rows, accumulated), tmp_path / "whole", tmp_path / "stopped"
    expected = run(whole, given, monkeypatch)
    steps = told(whole)[-1]["step"]
    batches = []
    for stop in (*(max(1, int(share * steps)) for share in STOPS.values()), None):
        batches += run(stopped, given, monkeypatch, stop)
    assert batches == expected
    assert fingerprint_folder(stopped / "model") == fingerprint_folder(whole / "model")
    assert told(stopped) == told(whole)


def test_a_run_that_stops_after_its_last_step_makes_no_further_one(tmp_path, monkeypatch):
    """Its steps end inside an epoch, and it is killed while the model is saved."""
    given, whole, stopped = [*words(16, 2), "trainer.max_steps=3"], tmp_path / "whole", tmp_path / "stopped"
    expected = run(whole, given, monkeypatch)

    def dying(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("reproalign.common.training.fit.save_final", dying)
        assert main([*given, f"output_dir={stopped}"]) == 130
    assert run(stopped, given, monkeypatch) == []
    assert len(expected) == 6
    assert fingerprint_folder(stopped / "model") == fingerprint_folder(whole / "model")
    assert told(stopped) == told(whole)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("strategy", ["ddp", "zero2"])
@pytest.mark.parametrize(
    ("rows", "accumulated", "stop"),
    [(16, 2, 1), (15, 2, 2), (16, 3, 3), (15, 3, 1)],
    ids=["early", "last batch not full: at the seam", "epoch cut off: late", "both: early"],
)
def test_two_processes_go_on_where_they_stopped(tmp_path, monkeypatch, strategy, rows, accumulated, stop):
    if strategy == "zero2":
        pytest.importorskip("deepspeed")
    given = [*words(rows, accumulated), f"launch={strategy}", "launch.processes=2", "launch.main_port=0"]
    command = [sys.executable, "-c", "import sys; from toy.cli import main; sys.exit(main())", *given]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert run_command([*command, f"output_dir={whole}"]).returncode == 0
    (tmp_path / "sitecustomize.py").write_text(SIGNALLED.format(stop=stop))
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
        assert run_command([*command, f"output_dir={stopped}"]).returncode == 128 + signal.SIGTERM
    assert [path.name for path in stopped.glob("checkpoint-*")] == [f"checkpoint-{stop + 1}"]
    assert run_command([*command, f"output_dir={stopped}"]).returncode == 0
    assert fingerprint_folder(stopped / "model") == fingerprint_folder(whole / "model")
    assert told(stopped) == told(whole)
