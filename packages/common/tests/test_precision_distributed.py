"""One recipe has one precision, whichever launcher starts it: one process and two measure the same."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from reproalign.common.launch.ending import end_after_leaving, leave
from reproalign.common.logprobs.model import install_completion_logps
from reproalign.common.models.tiny import tiny_model
from reproalign.common.signing import write_signed
from reproalign.common.testing import run_command
from reproalign.common.training.mixed_precision import fsdp_policy, names, optimizer_states, updated_weights

CODE = "import sys; from toy.cli import main; sys.exit(main())"
RECIPES = {
    "masters": (["model.dtype=float32", "trainer.bf16=true"], {"weights": "float32", "activations": "float32"}),
    "pure": (["model.dtype=bfloat16", "trainer.bf16=false"], {"weights": "bfloat16", "activations": "bfloat16"}),
}
needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
TWO = ["launch.processes=2", "launch.main_port=0", "trainer.per_device_train_batch_size=1"]


def expected(recipe: str) -> dict[str, str]:
    held = RECIPES[recipe][1]
    same = dict.fromkeys(("weights", "optimizer_states", "gradients", "reduction"), held["weights"])
    return {**same, "compute": "bfloat16", "activations": held["activations"]}


def run(folder: Path, recipe: str, *words: str) -> dict[str, Any]:
    small = ["trainer.max_steps=2", "trainer.save_steps=1", *RECIPES[recipe][0]]
    done = run_command(
        [sys.executable, "-c", CODE, "train", "experiment=smoke", f"output_dir={folder}", *small, *words]
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "run.json").read_text())


@pytest.mark.distributed
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("strategy", ["single", "ddp"])
def test_a_run_records_what_the_recipe_says(tmp_path, recipe, strategy):
    record = run(tmp_path / "run", recipe, f"launch={strategy}", *(TWO if strategy != "single" else []))
    assert record["precision"] == expected(recipe)


@pytest.mark.distributed
@needs_deepspeed
@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_deepspeed_holds_and_reduces_as_the_others_and_its_activations_are_16_bit(tmp_path, recipe, strategy):
    record = run(tmp_path / "run", recipe, f"launch={strategy}", *TWO)
    assert record["precision"] == {**expected(recipe), "activations": "bfloat16"}


@pytest.mark.distributed
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_resumed_run_keeps_its_precision(tmp_path, recipe):
    folder = tmp_path / "run"
    record = run(folder, recipe)
    path = folder / "run.json"
    del record["precision"]
    write_signed(path, {**record, "status": "failed"})
    (folder / "checkpoint-2").rename(tmp_path / "later")
    again = run(folder, recipe)
    assert again["resumed_from"] == "checkpoint-1"
    assert again["precision"] == expected(recipe)


@pytest.mark.distributed
def test_fsdp_in_two_processes_is_the_single_process_in_precision_and_in_numbers(tmp_path):
    path = tmp_path / "found.json"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*launcher, __file__, str(path)], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-5000:]
    found = json.loads(path.read_text())
    for recipe in RECIPES:
        one, two = found[recipe]["single"], found[recipe]["fsdp"]
        assert one["precision"] == two["precision"]
        assert one["precision"]["weights"] == expected(recipe)["weights"]
        assert one["precision"]["logps"] == "float32"
        assert two["sums"] == pytest.approx(one["sums"], rel=1e-6 if recipe == "masters" else 1e-2)
    # What FSDP does when it is told "bf16", as accelerate tells it: the log-probs that it answers have 8 bits.
    assert found["rounded"]["precision"]["logps"] == "bfloat16"


def batch() -> dict[str, Tensor]:
    ids = torch.randint(6, 500, (4, 17), generator=torch.Generator().manual_seed(3))
    completion = torch.ones_like(ids)
    completion[:, :5] = 0
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": completion}


def measure(recipe: str, policy: MixedPrecisionPolicy | None, *, sharded: bool) -> dict[str, Any]:
    """One step of AdamW; with ``sharded`` each process has half the rows."""
    dtype = torch.float32 if recipe == "masters" else torch.bfloat16
    model: nn.Module = tiny_model("llama", dtype=dtype).train()
    install_completion_logps(model)
    mine = batch()
    if sharded:
        mesh, rank = init_device_mesh("cpu", (2,)), dist.get_rank()
        options = {} if policy is None else {"mp_policy": policy}
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh, **options)
        fully_shard(model, mesh=mesh, **options)
        mine = {name: value[2 * rank : 2 * rank + 2] for name, value in mine.items()}
    seen: dict[str, str] = {}
    layer = model.model.layers[0]
    layer.mlp.up_proj.register_forward_hook(lambda module, inputs, output: seen.update(compute=names([output])))
    model.model.register_forward_hook(lambda module, inputs, output: seen.update(activations=names([output[0]])))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=recipe == "masters"):
        sums = model(**mine, use_cache=False)["sums"]
    (-sums.mean()).backward()
    gradients = names(parameter.grad for parameter in model.parameters())
    optimizer.step()
    total = sums.detach().float()
    parts = [torch.empty_like(total) for _ in range(2)]
    if sharded:
        dist.all_gather(parts, total)
    return {
        "precision": {
            "weights": names(updated_weights(optimizer)),
            "optimizer_states": names(optimizer_states(optimizer)),
            "gradients": gradients,
            "logps": names([sums]),
            **seen,
        },
        "sums": (torch.cat(parts) if sharded else total).tolist(),
    }


def main(path: str) -> None:
    end_after_leaving()
    dist.init_process_group("gloo")
    found: dict[str, Any] = {}
    for recipe in RECIPES:
        policy = fsdp_policy() if recipe == "masters" else None
        found[recipe] = {
            "single": measure(recipe, None, sharded=False),
            "fsdp": measure(recipe, policy, sharded=True),
        }
    half = torch.bfloat16
    found["rounded"] = measure("masters", MixedPrecisionPolicy(half, half, half), sharded=True)
    if dist.get_rank() == 0:
        Path(path).write_text(json.dumps(found))
    leave()


if __name__ == "__main__":
    main(sys.argv[1])
