"""The command that starts the processes a run asks for, checked against what the machine has."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from dataclasses import dataclass, field, replace
from importlib.resources import files
from typing import Any

from reproalign.common.config.launch import LaunchConfig
from reproalign.common.errors import UserError, counted

AUTO = "auto"


@dataclass(frozen=True)
class Hardware:
    """What a launch depends on: the options, the machine, and how processes are started."""

    gpus: int
    deepspeed: bool
    first_gpu: str = "0"  # its name in CUDA_VISIBLE_DEVICES

    @classmethod
    def detect(cls) -> Hardware:
        """Look at this machine."""
        import torch

        return cls(
            gpus=torch.cuda.device_count(),
            deepspeed=importlib.util.find_spec("deepspeed") is not None,
            first_gpu=os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0],
        )


@dataclass(frozen=True)
class LaunchPlan:
    """A command and what its environment needs beside; no command means: in this process."""

    command: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)


def resolve(config: LaunchConfig, hardware: Hardware) -> LaunchConfig:
    """Decide what ``auto`` stands for: ``fsdp`` on all GPUs of all machines if there are several, else ``single``.

    Other strategies are left as they are.

    Raises:
        UserError: for another number of processes than that.
    """
    if config.strategy != AUTO:
        return config
    processes = max(1, hardware.gpus * config.machines)
    if config.processes not in (1, processes):
        raise UserError(
            f"launch.strategy=auto is {counted(processes, 'process')} here "
            f"({counted(hardware.gpus, 'GPU')} per machine), not launch.processes={config.processes}; choose a "
            "strategy, e.g. launch=fsdp, or leave the number out"
        )
    return replace(config, strategy="fsdp" if processes > 1 else "single", processes=processes)


def plan(config: LaunchConfig, hardware: Hardware, record: str) -> LaunchPlan:
    """Plan the processes of ``config`` for a machine.

    Args:
        config: strategy, processes, machines.
        hardware: what this machine has.
        record: path of the file that the workers read.

    Raises:
        UserError: if the machine cannot run it, or would silently run something else.
    """
    config = resolve(config, hardware)
    check(config, hardware)
    strategy = config.strategy
    worker = ["-m", "reproalign.common.launch.worker", record]
    if strategy == "single":
        # With several GPUs in its sight transformers.Trainer would replicate the model over them (DataParallel).
        one = LaunchPlan([sys.executable, *worker], {"CUDA_VISIBLE_DEVICES": hardware.first_gpu})
        return one if hardware.gpus > 1 else LaunchPlan()
    environment = {}
    if not hardware.gpus:
        # Without the first, DDP's processes would be unrelated replicas; with it, DeepSpeed would not be used.
        environment = {"DS_ACCELERATOR": "cpu"} if strategy.startswith("zero") else {"ACCELERATE_USE_CPU": "true"}
    return LaunchPlan([*launcher(config), *worker], environment)


def launcher(config: LaunchConfig) -> list[str]:
    """Return the part of a command that starts the processes: ``accelerate launch``, see :mod:`~.launcher`."""
    words = [sys.executable, "-m", "reproalign.common.launch.launcher"]
    # DeepSpeed's own configuration reaches the trainer through TrainingArguments, which works on GPUs and CPUs alike.
    processes = "fsdp" if config.strategy == "fsdp" else "ddp"
    words += ["--config_file", str(files("reproalign.common.launch").joinpath(f"configs/{processes}.yaml"))]
    words += ["--num_processes", str(config.processes), "--num_machines", str(config.machines)]
    words += ["--machine_rank", str(config.machine_rank), "--main_process_port", str(config.main_port)]
    if config.main_address:
        words += ["--main_process_ip", config.main_address]
    return words


def deepspeed_config(strategy: str, dtype: str, compute: str | None) -> dict[str, Any] | None:
    """Return the DeepSpeed configuration of a ``zero…`` strategy, None for the others.

    Gradients are accumulated and reduced in the dtype in which weights are updated, as DDP does; weights that are
    trained in bfloat16 without masters have their states in it too.

    Args:
        strategy: ``launch.strategy``.
        dtype: in which weights are held.
        compute: autocast's dtype, None where everything is computed as it is held.
    """
    if not strategy.startswith("zero"):
        return None
    text = files("reproalign.common.launch").joinpath(f"configs/{strategy}.json").read_text(encoding="utf-8")
    settings: dict[str, Any] = json.loads(text)
    if compute is not None:
        return {**settings, "communication_data_type": "fp32", "data_types": {"grad_accum_dtype": "fp32"}}
    if dtype != "bfloat16":
        return settings
    held = {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
    return {
        **settings,
        "bf16": held,
        "communication_data_type": "bf16",
        "data_types": {"grad_accum_dtype": "bf16"},
    }


def check_in_force(strategy: str, distributed_type: str) -> None:
    """Check that the strategy that was asked for is the one in force; libraries fall back without a word.

    Args:
        strategy: ``launch.strategy``.
        distributed_type: of accelerate's state, e.g. ``MULTI_GPU``.

    Raises:
        UserError: if it is another one.
    """
    kinds = {"single": ("NO",), "ddp": ("MULTI_GPU", "MULTI_CPU", "MULTI_NPU", "MULTI_XPU"), "fsdp": ("FSDP",)}
    if distributed_type not in kinds.get(strategy, ("DEEPSPEED",)):
        raise UserError(
            f"launch.strategy={strategy} was asked for, but {distributed_type} is in force; see docs/launch.md"
        )


def check(config: LaunchConfig, hardware: Hardware) -> None:
    """Check a launch against the machine.

    Raises:
        UserError: saying what does not fit and what would.
    """
    strategy = config.strategy
    here = f"this machine has {counted(hardware.gpus, 'GPU')}"
    if config.processes % config.machines:
        raise UserError(
            f"launch.processes={config.processes} (over all machines) is not divisible by "
            f"launch.machines={config.machines}"
        )
    if config.machine_rank >= config.machines:
        raise UserError(f"launch.machine_rank={config.machine_rank} is not below launch.machines={config.machines}")
    if config.machines > 1 and not config.main_address:
        raise UserError("several machines need launch.main_address, the address of the machine with rank 0")
    if strategy == "single" and config.processes > 1:
        raise UserError(f"launch.strategy=single runs one process, not {config.processes}; use launch=ddp")
    if strategy.startswith("zero") and not hardware.deepspeed:
        raise UserError(f"launch.strategy={strategy} needs DeepSpeed: pip install 'reproalign-common[deepspeed]'")
    if strategy == "fsdp" and not hardware.gpus:
        raise UserError(
            f"launch.strategy=fsdp needs GPUs ({here}; on a CPU it would silently become ddp); use launch=ddp"
        )
    if strategy == "zero3-offload" and not hardware.gpus:
        raise UserError(f"launch.strategy=zero3-offload needs GPUs to offload from ({here}); use launch=zero3")
    local = config.processes // config.machines
    if hardware.gpus and local > hardware.gpus and strategy != "single":
        raise UserError(f"launch.processes={config.processes} is {local} per machine, but {here}")
