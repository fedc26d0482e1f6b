"""Several processes on one global batch give the single process's run; started by the command itself."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from reproalign.common.testing import run_command

CODE = "import sys; from reproalign.mmpo.cli import main; sys.exit(main())"
TOLERANCE = 1e-5
needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
# Port 0: a free one, since other runs on the machine may be using the usual one.
TWO = [
    "launch.processes=2",
    "launch.main_port=0",
    "trainer.per_device_train_batch_size=2",
    "trainer.gradient_accumulation_steps=2",
]


def run(folder: Path, *words: str, verb: str = "train") -> dict:
    recipe = {"train": "smoke", "reward": "smoke-reward"}[verb]
    command = [sys.executable, "-c", CODE, verb, f"experiment={recipe}", f"output_dir={folder}", *words]
    done = run_command(command)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "run.json").read_text())


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("single") / "run"
    run(folder)
    return folder


@pytest.mark.distributed
@pytest.mark.parametrize(
    "strategy",
    ["ddp", *(pytest.param(name, marks=needs_deepspeed) for name in ("zero1", "zero2", "zero3"))],
)
def test_two_processes_give_the_single_ones_run(tmp_path, single, strategy):
    folder = tmp_path / strategy
    record = run(folder, f"launch={strategy}", *TWO)
    assert (record["processes"], record["strategy"]) == (2, strategy)
    expected = json.loads((single / "run.json").read_text())
    assert losses(folder) == pytest.approx(losses(single), abs=TOLERANCE)
    assert record["metrics"]["after"] == pytest.approx(expected["metrics"]["after"], abs=1e-4)
    # Plain transformers reads what was saved, and it is the same model.
    ours, theirs = (AutoModelForCausalLM.from_pretrained(path / "model") for path in (folder, single))
    for left, right in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=TOLERANCE)


@pytest.mark.distributed
def test_reward_model_and_adapters_in_two_processes(tmp_path):
    words = ["evaluate_before=false", "trainer.max_steps=4"]
    lora = ["model.lora.enabled=true", "model.lora.dropout=0"]  # every process draws masks of its own
    for name, verb, more in (("reward", "reward", []), ("lora", "train", lora)):
        alone = run(tmp_path / name, *words, *more, verb=verb)
        both = run(tmp_path / f"{name}-2", *words, *more, "launch=ddp", *TWO, verb=verb)
        assert losses(tmp_path / f"{name}-2") == pytest.approx(losses(tmp_path / name), abs=TOLERANCE)
        assert both["metrics"]["after"] == pytest.approx(alone["metrics"]["after"], abs=1e-4)


@pytest.mark.distributed
def test_a_mistake_found_by_a_worker_is_one_line_and_leaves_nothing(tmp_path):
    file, folder = tmp_path / "pairs.jsonl", tmp_path / "runs" / "bad"
    file.write_text('{"prompt": \n')
    words = ["data=own", f"data.sets.own.path={file}", "launch=ddp", *TWO, f"output_dir={folder}"]
    command = [sys.executable, "-c", CODE, "train", "experiment=smoke", *words]
    done = run_command(command)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"mmpo: error: {file} line 1: not valid JSON")
    assert not folder.parent.exists()
