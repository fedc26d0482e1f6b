"""What a GPU computes is what the CPU does, and a run on one is interrupted and resumed as elsewhere.

`./run gpu`. Matrix products are in full float32, torch's default; sums are taken in another order than on a CPU.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reproalign.common.logprobs import chunked_token_statistics
from reproalign.common.logprobs.head_states import HeadStates
from reproalign.common.logprobs.plain import token_statistics
from reproalign.radpo import CVaR

GPUS = torch.cuda.device_count()
VISIBLE = "CUDA_VISIBLE_DEVICES"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not GPUS, reason="there is no GPU that torch can use")]

STATISTICS = ("logps", "ref_logps", "forward_kl", "risk")
TRAINED = ("logps", "forward_kl", "risk")  # what has a gradient
LATE = 400  # seconds that a command on tiny models may take
MMPO = ["mmpo", "train", "experiment=smoke"]
COMMANDS = {
    "mmpo": MMPO,
    "mmpo-reward": ["mmpo", "reward", "experiment=smoke-reward"],
    "more": ["more-rm", "train", "experiment=smoke"],
    "radpo": ["radpo", "train", "experiment=smoke", "loss=ra-dpo"],
    "dtm": ["dtm", "run", "experiment=smoke", "model.lora.dropout=0"],  # a GPU draws other masks
    "ama": ["ama", "reward", "experiment=smoke"],
}


def started(words: list[str], folder: Path, gpus: int = 1) -> subprocess.Popen[str]:
    """Start a command that sees the first ``gpus`` of the GPUs that this process sees."""
    command, *rest = words
    names = os.environ.get(VISIBLE, ",".join(map(str, range(GPUS)))).split(",")
    environment = {**os.environ, VISIBLE: ",".join(names[:gpus])}
    line = [Path(sys.executable).with_name(command), *rest, f"output_dir={folder}"]
    return subprocess.Popen(line, env=environment, stderr=subprocess.PIPE, text=True)


def trained(words: list[str], folder: Path, gpus: int = 1) -> Path:
    """Run a command to its end."""
    process = started(words, folder, gpus)
    _, errors = process.communicate(timeout=LATE)
    assert process.returncode == 0, errors
    return folder


def record_of(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))


def losses(folder: Path) -> dict[str, list[float]]:
    """Training losses of a run and of those that it started."""
    found = {}
    for path in sorted(folder.rglob("metrics.jsonl")):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        found[str(path.relative_to(folder))] = [row["loss"] for row in rows if "loss" in row]
    assert found
    assert all(found.values())
    return found


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """What a run and those that it started have trained."""
    found = {}
    for path in sorted(folder.rglob("*.safetensors")):
        if not any(part.startswith("checkpoint-") for part in path.parts):
            held = {key: value.double() for key, value in load_file(path).items()}
            found |= {f"{path.relative_to(folder)}: {key}": value for key, value in held.items()}
    assert found
    return found


def distance(first: Path, second: Path) -> float:
    """How far the weights of two runs are apart, as a share of their size: training moves them by tenths."""
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys()
    apart = sum(float((one[key] - value).square().sum()) for key, value in other.items())
    return math.sqrt(apart / sum(float(value.square().sum()) for value in other.values()))


def assert_near(first: Path, second: Path, bound: float) -> None:
    one, other = losses(first), losses(second)
    assert one == {name: pytest.approx(values, rel=bound) for name, values in other.items()}


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_statistics_are_those_of_full_logits_in_float64(dtype, bound):
    """In bfloat16 hidden states and head are the same numbers in both; the gradients are rounded to it at the end."""
    generator = torch.Generator().manual_seed(0)
    normal = [torch.randn(*size, generator=generator) for size in [(64, 32), (512, 32), (64, 32), (512, 32)]]
    targets = torch.randint(0, 512, (64,), generator=generator)
    upstream = torch.randn(len(TRAINED), 64, generator=generator)

    def outputs(device: str, kind: torch.dtype, chunked: bool) -> dict[str, torch.Tensor]:
        hidden, weight, *reference = (tensor.to(dtype).to(device, kind) for tensor in normal)
        hidden.requires_grad_()
        weight.requires_grad_()
        if chunked:
            values = chunked_token_statistics(
                HeadStates(hidden, weight),
                HeadStates(*reference),
                targets.to(device),
                statistics=STATISTICS,
                measure=CVaR(0.95),
                chunk_size=24,
            )
        else:
            logits, ref_logits = hidden @ weight.T, reference[0] @ reference[1].T
            values = token_statistics(logits, ref_logits, targets.to(device), CVaR(0.95))
        total = (upstream.to(values["risk"]) * torch.stack([values[name] for name in TRAINED])).sum()
        gradients = dict(zip(("hidden", "head"), torch.autograd.grad(total, [hidden, weight]), strict=True))
        found = {name: values[name].detach() for name in STATISTICS} | gradients
        return {name: value.double().cpu() for name, value in found.items()}

    found, expected = outputs("cuda", dtype, chunked=True), outputs("cpu", torch.float64, chunked=False)
    errors = {name: float((found[name] - value).norm() / value.norm()) for name, value in expected.items()}
    assert max(errors.values()) < bound, errors


@pytest.mark.parametrize("name", COMMANDS)
def test_a_recipe_has_the_losses_that_it_has_on_the_cpu(tmp_path, name):
    on_cpu, on_gpu = (trained(COMMANDS[name], tmp_path / str(gpus), gpus) for gpus in (0, 1))
    assert [len(record_of(run)["hardware"]["accelerators"]) for run in (on_cpu, on_gpu)] == [0, 1]
    assert_near(on_gpu, on_cpu, 1e-3)
    assert distance(on_gpu, on_cpu) < 1e-2


@pytest.mark.parametrize("lora", [True, False])
def test_a_penalty_and_its_start_are_where_the_weights_are(tmp_path, lora):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"instruction": f"Say {n}.", "output": f"{n}"}) + "\n" for n in range(8)))
    words = [
        "dtm",
        "train",
        f"rows=[{rows}]",
        "model.name=tiny:llama",
        "trainer.max_steps=3",
        "trainer.logging_steps=1",
    ]
    words += [
        "trainer.warmup_steps=1",
        "trainer.learning_rate=0.01",
        "regularizer.name=l2",
        "regularizer.weight=0.1",
        "model.lora.dropout=0",
        f"model.lora.enabled={lora}",
    ]
    on_cpu, on_gpu = (trained(words, tmp_path / str(gpus), gpus) for gpus in (0, 1))
    assert_near(on_gpu, on_cpu, 1e-3)
    assert distance(on_gpu, on_cpu) < 1e-2


def test_autocast_computes_in_bfloat16(tmp_path):
    exact = trained(MMPO, tmp_path / "float32")
    rounded = trained([*MMPO, "trainer.bf16=true"], tmp_path / "bfloat16")
    assert record_of(rounded)["precision"]["compute"] == "bfloat16"
    assert losses(rounded) != losses(exact)
    assert_near(rounded, exact, 2e-2)


def test_an_interrupted_run_goes_on_to_the_same_losses(tmp_path):
    words = [*MMPO, "trainer.save_strategy=steps", "trainer.save_steps=2", "trainer.logging_steps=1"]
    whole = trained(words, tmp_path / "whole")
    process = started(words, tmp_path / "cut")
    while not (saved := list((tmp_path / "cut").glob("checkpoint-*/trainer_state.json"))) and process.poll() is None:
        time.sleep(0.01)
    assert saved
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=LATE)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert record_of(tmp_path / "cut")["status"] == "interrupted"
    resumed = trained(words, tmp_path / "cut")
    assert record_of(resumed)["resumptions"] == 1
    assert_near(resumed, whole, 1e-5)
    assert distance(resumed, whole) < 1e-4


@pytest.mark.skipif(GPUS < 2, reason="there is one GPU at most")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero2", "zero3"])
def test_two_gpus_give_the_losses_of_one(tmp_path, strategy):
    batch = "trainer.per_device_train_batch_size"
    one = trained([*MMPO, f"{batch}=4", "trainer.gradient_accumulation_steps=1"], tmp_path / "one")
    words = [*MMPO, f"{batch}=2", "trainer.gradient_accumulation_steps=1"]
    two = trained([*words, f"launch={strategy}", "launch.processes=2"], tmp_path / "two", gpus=2)
    assert_near(two, one, 1e-3)
    assert distance(two, one) < 1e-2
