"""The facts of a machine and of what is installed on it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any

DISTRIBUTIONS = (
    "reproalign-common",
    "torch",
    "transformers",
    "trl",
    "accelerate",
    "peft",
    "datasets",
    "tokenizers",
    "safetensors",
    "lm-eval",
    "vllm",
    "deepspeed",
    "bitsandbytes",
    "hydra-core",
    "numpy",
)


def package_versions(package: str) -> dict[str, str]:
    """Return the versions of what the result depends on; what is not installed is left out."""
    found = {name: _version(name) for name in (*DISTRIBUTIONS, package.replace(".", "-"))}
    return {name: known for name, known in found.items() if known is not None}


@cache
def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@cache
def git_state(package_file: Path) -> dict[str, Any] | None:
    """Return commit and dirtiness of the source tree that ``package_file`` is in, else those the core was built from.

    None if neither is known; then the version stands for the source. Asked once per process, whose modules are as they
    were imported.
    """

    def git(*words: str) -> str | None:
        # `status` would refresh the index, and a run that is killed meanwhile would leave the repository locked.
        command = ["git", "--no-optional-locks", "-C", str(package_file.parent), *words]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    # A virtual environment inside somebody else's repository is not our source tree.
    if git("ls-files", "--error-unmatch", package_file.name) is None:
        built = files("reproalign.common").joinpath("commit.json")  # packages/common/hatch_build.py
        return json.loads(built.read_text(encoding="utf-8")) if built.is_file() else None
    commit = git("rev-parse", "HEAD")
    return None if commit is None else {"commit": commit, "dirty": bool(git("status", "--porcelain"))}


def hardware() -> dict[str, Any]:
    """Return operating system, Python, processor, memory and accelerators."""
    import psutil
    import torch

    facts: dict[str, Any] = {
        "system": platform.platform(),
        "python": platform.python_version(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "accelerators": [],
    }
    if torch.cuda.is_available():
        facts["accelerators"] = [
            {"name": properties.name, "memory_bytes": properties.total_memory}
            for properties in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
        ]
        facts["cuda"] = torch.version.cuda
    return facts


def peak_memory() -> dict[str, int]:
    """Return the largest resident memory of this process, and allocated memory of its accelerator, in bytes."""
    import resource

    import torch

    unit = 1 if platform.system() == "Darwin" else 1024
    peak = {"resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if torch.cuda.is_available():
        peak["accelerator_bytes"] = torch.cuda.max_memory_allocated()
    return peak


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
