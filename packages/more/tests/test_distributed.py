"""Several processes on one global batch give the single process's run; started by the command itself."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

from reproalign.common.testing import run_command

CODE = "import sys; from reproalign.more.cli import main; sys.exit(main())"
needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
QUICK = ["trainer.max_steps=4", "trainer.save_strategy=no", "trainer.eval_strategy=no"]


def run(folder: Path, *words: str) -> dict:
    command = [sys.executable, "-c", CODE, "train", "experiment=smoke", *QUICK, f"output_dir={folder}", *words]
    done = run_command(command)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "run.json").read_text())


def logged(folder: Path) -> dict[str, list[float]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = [name for name in rows[0] if name.split("/")[0] in ("loss", "lambda", "accuracy") or name == "loss"]
    return {name: [row[name] for row in rows if name in row] for name in names}


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        ("ddp", []),
        ("ddp", ["method=multitask"]),
        ("ddp", ["data.resampling=false", "weights.normalize=loss+"]),
        pytest.param("zero2", [], marks=needs_deepspeed),
        pytest.param("zero3", [], marks=needs_deepspeed),
    ],
)
def test_two_processes_give_the_single_ones_run(tmp_path, strategy, words):
    """One global batch of eight rows: at once, or in two micro-batches of two processes each."""
    words = [*words, "trainer.max_grad_norm=0"]
    one = ["trainer.per_device_train_batch_size=8", "trainer.gradient_accumulation_steps=1"]
    alone = run(tmp_path / "alone", *words, *one)
    two = ["launch.processes=2", "launch.main_port=0"]
    parts = ["trainer.per_device_train_batch_size=2", "trainer.gradient_accumulation_steps=2"]
    both = run(tmp_path / "both", *words, f"launch={strategy}", *two, *parts)
    assert (both["processes"], both["strategy"]) == (2, strategy)
    expected, found = logged(tmp_path / "alone"), logged(tmp_path / "both")
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, abs=1e-4), name
    for domain, metrics in alone["metrics"]["domains"].items():
        assert both["metrics"]["domains"][domain] == pytest.approx(metrics, rel=1e-3, abs=1e-3), domain


@pytest.mark.distributed
def test_in_the_release_every_process_has_weights_of_its_own(tmp_path):
    words = [
        "variant=released",
        "data.resampling_size=80",
        "trainer.gradient_accumulation_steps=1",
        "trainer.save_strategy=steps",
        "trainer.save_steps=4",
    ]
    two = ["launch=ddp", "launch.processes=2", "launch.main_port=0", "trainer.per_device_train_batch_size=2"]
    run(tmp_path / "both", *words, *two)
    states = sorted((tmp_path / "both" / "checkpoint-4").glob("balance-*.safetensors"))
    assert [path.name for path in states] == ["balance-0.safetensors", "balance-1.safetensors"]
    assert states[0].read_bytes() != states[1].read_bytes()
