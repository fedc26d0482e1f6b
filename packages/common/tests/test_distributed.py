"""Several processes on one global batch give the single process's run; started by the command itself."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reproalign.common.testing import logged, run_command

CODE = "import sys; from toy.cli import main; sys.exit(main())"
TOLERANCE = 1e-5
needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
# Port 0: a free one, since other runs on the machine may be using the usual one.
TWO = ["launch.processes=2", "launch.main_port=0", "trainer.per_device_train_batch_size=1"]
SAME = ["trainer.gradient_accumulation_steps=2", "trainer.save_strategy=no"]


def run(folder: Path, *words: str) -> dict:
    command = [sys.executable, "-c", CODE, "train", "experiment=smoke", *SAME, f"output_dir={folder}", *words]
    done = run_command(command)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "run.json").read_text())


def alone(folder: Path, *words: str) -> dict:
    """One process on the batches of two with a row each."""
    return run(folder, "trainer.per_device_train_batch_size=2", *words)


def agree(both: Path, single: Path) -> None:
    """Losses, held-out loss and saved weights are the same."""
    assert logged(both) == pytest.approx(logged(single), abs=TOLERANCE)
    records = [json.loads((folder / "run.json").read_text()) for folder in (both, single)]
    assert records[0]["metrics"]["eval_loss"] == pytest.approx(records[1]["metrics"]["eval_loss"], abs=1e-4)
    (name,) = [file.name for file in (single / "model").glob("*.safetensors")]
    ours, theirs = (load_file(folder / "model" / name) for folder in (both, single))
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        torch.testing.assert_close(ours[key], tensor, rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("single") / "run"
    alone(folder)
    return folder


@pytest.mark.distributed
@pytest.mark.parametrize(
    "strategy",
    ["ddp", *(pytest.param(name, marks=needs_deepspeed) for name in ("zero1", "zero2", "zero3"))],
)
def test_two_processes_give_the_single_ones_run(tmp_path, single, strategy):
    record = run(tmp_path / "both", f"launch={strategy}", *TWO)
    assert (record["processes"], record["strategy"]) == (2, strategy)
    agree(tmp_path / "both", single)


@pytest.mark.distributed
def test_adapters_in_two_processes(tmp_path):
    lora = ["model.lora.enabled=true", "model.lora.dropout=0"]  # every process draws masks of its own
    alone(tmp_path / "single", *lora)
    run(tmp_path / "both", *lora, "launch=ddp", *TWO)
    agree(tmp_path / "both", tmp_path / "single")


@pytest.mark.distributed
def test_each_process_computes_its_share_of_the_cached_log_probs(tmp_path, single):
    def cache(name: str) -> dict[str, bytes]:
        folder = tmp_path / f"{name}-cache"
        found = (folder / "reference-logps").rglob("*.safetensors")
        return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(found)}

    words = ["reference.mode=cached"]
    alone(tmp_path / "alone", *words, f"data.cache_dir={tmp_path / 'alone-cache'}")
    run(tmp_path / "both", *words, f"data.cache_dir={tmp_path / 'both-cache'}", "launch=ddp", *TWO)
    assert len(cache("alone")) > 2
    assert cache("both") == cache("alone")
    agree(tmp_path / "both", single)


@pytest.mark.distributed
def test_a_mistake_found_by_a_worker_is_one_line_and_leaves_nothing(tmp_path):
    file, folder = tmp_path / "pairs.jsonl", tmp_path / "runs" / "bad"
    file.write_text('{"prompt": "Count. ", "chosen": "One.", "rejected": "No."}\n{"prompt": \n')
    words = ["data=own", f"data.sets.own.path={file}", "launch=ddp", *TWO, f"output_dir={folder}"]
    done = run_command([sys.executable, "-c", CODE, "train", "experiment=smoke", *words])
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"toy: error: {file} line 2: not valid JSON")
    assert not folder.parent.exists()
