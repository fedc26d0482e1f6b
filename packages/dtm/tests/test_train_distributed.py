"""Two processes on one global batch give the single process's run, with either average of the loss."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reproalign.common.testing import run_command

CODE = "import sys; from reproalign.dtm.cli import main; sys.exit(main())"
WORDS = [
    "model.name=tiny:llama",
    "model.lora.dropout=0",
    "trainer.max_steps=5",
    "trainer.warmup_steps=1",
    "trainer.learning_rate=0.01",
    "trainer.max_grad_norm=0",
    "trainer.logging_steps=1",
    "trainer.save_strategy=no",
]


def run(folder: Path, data: Path, *words: str) -> dict[str, list[float]]:
    given = [f"rows=[{data}]", f"held_out=[{data}]", f"output_dir={folder}"]
    done = run_command([sys.executable, "-c", CODE, "train", *WORDS, *given, *words])
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {name: [line[name] for line in lines if name in line] for name in ("loss", "token_loss", "penalty")}


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("alone", "each", "words"),
    [
        # rows a micro-batch, micro-batches a step: of the single process, and of each of the two
        ((1, 4), (1, 2), ["normalisation=micro_batch_mean"]),
        ((4, 1), (1, 2), ["normalisation=token_mean"]),
        ((1, 4), (2, 1), ["normalisation=token_mean", "regularizer.name=l2", "regularizer.weight=0.1"]),
        ((1, 4), (1, 2), ["variant=released", "tokens.max_length=165"]),
    ],
)
def test_two_processes_give_the_single_ones_run(tmp_path, alone, each, words):
    data = tmp_path / "rows.jsonl"
    rows = [{"instruction": f"Count to {n}.", "output": "one two " * (1 + n % 9)} for n in range(40)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def cut(size: int, steps: int) -> list[str]:
        return [f"trainer.per_device_train_batch_size={size}", f"trainer.gradient_accumulation_steps={steps}"]

    expected = run(tmp_path / "alone", data, *words, *cut(*alone))
    two = ["launch=ddp", "launch.processes=2", "launch.main_port=0"]
    found = run(tmp_path / "both", data, *words, *cut(*each), *two)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, abs=2e-5, nan_ok=True), name
    left, right = (load_file(tmp_path / name / "model" / "adapter_model.safetensors") for name in ("alone", "both"))
    for name, tensor in left.items():
        torch.testing.assert_close(right[name], tensor, atol=1e-4, rtol=1e-3)
    records = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("alone", "both")]
    assert records[0]["adapter_start"] == records[1]["adapter_start"]
    assert records[0]["metrics"] == pytest.approx(records[1]["metrics"], abs=1e-4)
