"""Several processes on one global batch give the single process's run; started by the command itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from reproalign.common.testing import logged, run_command

CODE = "import sys; from reproalign.mmpo.cli import main; sys.exit(main())"
TOLERANCE = 1e-5
# Port 0: a free one, since other runs on the machine may be using the usual one.
TWO = [
    "launch.processes=2",
    "launch.main_port=0",
    "trainer.per_device_train_batch_size=2",
    "trainer.gradient_accumulation_steps=2",
]


def run(folder: Path, *words: str) -> dict:
    given = ["experiment=smoke-reward", "evaluate_before=false", "trainer.max_steps=4", f"output_dir={folder}"]
    done = run_command([sys.executable, "-c", CODE, "reward", *given, *words])
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "run.json").read_text())


@pytest.mark.distributed
def test_a_reward_model_in_two_processes(tmp_path):
    alone = run(tmp_path / "alone")
    both = run(tmp_path / "both", "launch=ddp", *TWO)
    assert logged(tmp_path / "both") == pytest.approx(logged(tmp_path / "alone"), abs=TOLERANCE)
    assert both["metrics"]["after"] == pytest.approx(alone["metrics"]["after"], abs=1e-4)
