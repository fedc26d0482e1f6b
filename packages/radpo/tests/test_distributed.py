"""Several processes on one global batch give the single process's run; started by the command itself."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from reproalign.common.testing import logged, run_command

CODE = "import sys; from reproalign.radpo.cli import main; sys.exit(main())"
needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
# Two processes with two rows each take in turns what one process takes at once; four rows of batch in all.
ONE = ["trainer.per_device_train_batch_size=4", "trainer.gradient_accumulation_steps=1"]
# Port 0: a free one, since other runs on the machine may be using the usual one.
TWO = [
    "launch.processes=2",
    "launch.main_port=0",
    "trainer.per_device_train_batch_size=2",
    "trainer.gradient_accumulation_steps=1",
]
QUICK = ["trainer.max_steps=4", "data.max_eval_rows=8"]


def run(folder: Path, *words: str) -> dict:
    command = [sys.executable, "-c", CODE, "train", "experiment=smoke", *QUICK, f"output_dir={folder}", *words]
    done = run_command(command)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "run.json").read_text())


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("loss", "strategy"),
    [
        ("ra-dpo", "ddp"),
        ("kto-zero", "ddp"),
        pytest.param("ra-dpo", "zero2", marks=needs_deepspeed),
        pytest.param("ra-dpo", "zero3", marks=needs_deepspeed),
    ],
)
def test_two_processes_give_the_single_ones_run(tmp_path, loss, strategy):
    words = [f"loss={loss}", "trainer.max_grad_norm=0"]
    alone = run(tmp_path / "alone", *words, *ONE)
    both = run(tmp_path / "both", *words, f"launch={strategy}", *TWO)
    assert (both["processes"], both["strategy"]) == (2, strategy)
    assert logged(tmp_path / "both") == pytest.approx(logged(tmp_path / "alone"), abs=1e-5)
    for time in ("before", "after"):
        assert both["metrics"][time] == pytest.approx(alone["metrics"][time], rel=1e-4, abs=1e-4)


@pytest.mark.distributed
@pytest.mark.parametrize("loss", ["tdpo", "kto"])
def test_the_published_step_may_be_shared_by_processes_or_accumulated(tmp_path, loss):
    """Two batches of one process or one of each of two: the same rows, the same gradient, the same ticks."""
    words = [f"loss={loss}", "variant=released", "released.accumulation=2", "trainer.max_grad_norm=0"]
    batch = ["trainer.per_device_train_batch_size=2"]
    alone = run(tmp_path / "alone", *words, *batch, "trainer.gradient_accumulation_steps=2")
    shared = [*batch, "trainer.gradient_accumulation_steps=1", "launch=ddp", "launch.processes=2", "launch.main_port=0"]
    both = run(tmp_path / "both", *words, *shared)
    for time in ("before", "after"):
        assert both["metrics"][time] == pytest.approx(alone["metrics"][time], rel=1e-4, abs=1e-4)
