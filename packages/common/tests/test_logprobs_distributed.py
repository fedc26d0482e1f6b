"""Two processes compute what one computes: log-probs, loss and weights after optimiser steps, however they are sharded.

The ranks differ in completion tokens, one of them has next to none, and a chunk is one token: whoever gathered the head
once per chunk would wait for the other for ever.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from reproalign.common.config.model import LogprobsConfig
from reproalign.common.launch.ending import end_after_leaving, leave
from reproalign.common.logprobs.model import install_completion_logps
from reproalign.common.models.forward import unwrap_peft
from reproalign.common.models.tiny import tiny_model

PROCESSES, STEPS, TOLERANCE = 2, 3, 1e-10
DDP = ["ddp", "ddp-adapted-head"]
FSDP = ["fsdp-blocks", "fsdp-tail", "fsdp-tail-tied", "fsdp-head", "fsdp-adapted-head"]
ZERO = ["zero3", "zero3-tied", "zero3-adapted-head"]
needs_deepspeed = pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed")


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> Callable[[list[str]], dict[str, Any]]:
    """Run a list of strategies in two processes, once, and return what they recorded."""
    done: dict[str, Any] = {}

    def run(strategies: list[str]) -> dict[str, Any]:
        if strategies[0] not in done:
            path = tmp_path_factory.mktemp("workers") / "found.json"
            launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"]
            process = subprocess.run(
                [*launcher, __file__, str(path), *strategies], capture_output=True, text=True, check=False, timeout=240
            )
            assert process.returncode == 0, process.stderr[-5000:]
            done.update(json.loads(path.read_text()))
        return done

    return run


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("strategy", "together"),
    [
        *((name, DDP) for name in DDP),
        *((name, FSDP) for name in FSDP),
        *(pytest.param(name, ZERO, marks=needs_deepspeed) for name in ZERO),
    ],
)
def test_two_processes_compute_what_one_computes(found, strategy, together):
    result = found(together)[strategy]
    assert result["world_size"] == PROCESSES
    assert result["in_force"]
    assert result["way"] == ("module" if "adapted-head" in strategy else "chunked")
    assert result["sums"] == pytest.approx(result["expected_sums"], rel=result["tolerance"])
    assert result["losses"] == pytest.approx(result["expected_losses"], rel=result["tolerance"])
    assert result["losses"][0] != pytest.approx(result["losses"][-1], rel=1e-3)  # something was learned
    assert result["largest_weight_difference"] < result["weight_tolerance"]


def batch() -> dict[str, Tensor]:
    """Four rows; the first two, one process's, have many completion tokens, the others one and none."""
    ids = torch.randint(6, 500, (4, 17), generator=torch.Generator().manual_seed(3))
    attention = torch.ones_like(ids)
    attention[1, 12:] = 0
    completion = attention.clone()
    completion[:, :5] = 0
    completion[2, 6:] = 0
    completion[3] = 0
    return {"input_ids": ids, "attention_mask": attention, "completion_mask": completion}


def make(strategy: str, dtype: torch.dtype) -> nn.Module:
    model: nn.Module = tiny_model("gemma", dtype=dtype, tie_word_embeddings=strategy.endswith("tied"))
    if strategy.endswith("adapted-head"):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            model = get_peft_model(
                model, LoraConfig(r=4, target_modules=["q_proj", "lm_head"], init_lora_weights=False)
            ).to(dtype)
    return model.train()


def loss_of(sums: Tensor) -> Tensor:
    return nn.functional.softplus(0.05 * sums).mean()


def shard(strategy: str, model: nn.Module) -> nn.Module:
    """FSDP in the ways that are met: the head in the root's group, in one with norm and embeddings, or in its own."""
    base = unwrap_peft(model)
    mesh = init_device_mesh("cpu", (PROCESSES,))
    for layer in base.model.layers:
        fully_shard(layer, mesh=mesh)
    head = base.get_output_embeddings()
    if strategy == "fsdp-head":
        fully_shard(head, mesh=mesh)
    elif strategy != "fsdp-blocks":  # as accelerate does
        embedding = base.get_input_embeddings()
        tied = embedding.weight is getattr(head, "weight", None)
        if not tied:
            fully_shard(embedding, mesh=mesh)
        fully_shard([base.model.norm, *([embedding] if tied else []), head], mesh=mesh, reshard_after_forward=False)
    return fully_shard(model, mesh=mesh)


def whole(parameter: Tensor) -> Tensor:
    if hasattr(parameter, "ds_id"):
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([parameter]):
            return parameter.detach().clone()
    return (parameter.full_tensor() if isinstance(parameter, DTensor) else parameter).detach()


def expected(strategy: str, dtype: torch.dtype) -> dict[str, Any]:
    """One process, full logits, the whole batch."""
    model = make(strategy, dtype)
    install_completion_logps(model, LogprobsConfig(implementation="plain"))
    steps = sgd(model)
    losses, first = [], None
    for _ in range(STEPS):
        sums = model(**batch(), use_cache=False)["sums"]
        first = sums.tolist() if first is None else first
        loss = loss_of(sums)
        loss.backward()
        steps.step()
        steps.zero_grad()
        losses.append(loss.item())
    return {"sums": first, "losses": losses, "weights": list(model.parameters())}


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """Not Adam, which divides gradients by their size and so blows up the rounding of those that are nearly 0."""
    return torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1.0)


def two_processes(strategy: str) -> dict[str, Any]:
    rank = dist.get_rank()
    zero = strategy.startswith("zero3")
    dtype = torch.float32 if zero else torch.float64  # DeepSpeed has no float64
    reference = expected(strategy, dtype)
    model = make(strategy, dtype)
    way = install_completion_logps(model, LogprobsConfig(chunk_size=1))
    if zero:
        wrapped = zero3(model, sgd(model))
        in_force = all(hasattr(parameter, "ds_id") for parameter in model.parameters())
    elif strategy.startswith("ddp"):
        wrapped = DistributedDataParallel(model)
        in_force = isinstance(wrapped, DistributedDataParallel)
    else:
        wrapped = shard(strategy, model)
        in_force = isinstance(wrapped, FSDPModule) and all(isinstance(p, DTensor) for p in wrapped.parameters())
    steps = wrapped if zero else sgd(wrapped)
    rows = slice(2 * rank, 2 * rank + 2)
    own = {name: value[rows] for name, value in batch().items()}
    with torch.no_grad():
        sums = wrapped(**own, use_cache=False)["sums"]
    losses = []
    for _ in range(STEPS):
        loss = loss_of(wrapped(**own, use_cache=False)["sums"])
        wrapped.backward(loss) if zero else loss.backward()
        steps.step()
        steps.zero_grad()
        losses.append(float(mean_over_processes(loss)))
    weights = [whole(parameter) for parameter in model.parameters()]
    differences = [
        float((ours - theirs).detach().abs().max()) for ours, theirs in zip(weights, reference["weights"], strict=True)
    ]
    return {
        "world_size": dist.get_world_size(),
        "in_force": in_force,
        "way": way,
        "sums": gathered(sums),
        "expected_sums": reference["sums"],
        "losses": losses,
        "expected_losses": reference["losses"],
        "largest_weight_difference": max(differences),
        "tolerance": 1e-4 if zero else TOLERANCE,
        # Gemma's norms compute in float32 in any case, so gradients that agree to 1e-16 leave them with 1e-10.
        "weight_tolerance": 1e-4 if zero else 1e-8,
    }


def mean_over_processes(value: Tensor) -> Tensor:
    value = value.detach().clone()
    dist.all_reduce(value)
    return value / dist.get_world_size()


def gathered(sums: Tensor) -> list[float]:
    parts = [torch.empty_like(sums) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, sums)
    return torch.cat(parts).tolist()


def zero3(model: nn.Module, optimiser: torch.optim.Optimizer) -> Any:
    import deepspeed

    settings = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        # 0: however small, no weight stays gathered.
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0, "stage3_max_live_parameters": 0},
    }
    return deepspeed.initialize(model=model, optimizer=optimiser, config=settings)[0]


def main(path: str, strategies: list[str]) -> None:
    end_after_leaving()
    if strategies[0].startswith("zero3"):
        os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # needs a compiler
        deepspeed.init_distributed("gloo")
    else:
        dist.init_process_group("gloo")
    results = {strategy: two_processes(strategy) for strategy in strategies}
    if dist.get_rank() == 0:
        Path(path).write_text(json.dumps(results))
    leave()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
