"""Merging: ours against mergekit, and against reading the inputs and writing the output without any arithmetic.

    python benchmarks/merging.py --mergekit VENV/bin/mergekit-yaml --output results/benchmarks/merging.json
    python benchmarks/merging.py --sizes 14 140 --folder /scratch      # bf16 checkpoints of 7B and 70B

Synthetic Llama checkpoints in bf16 (random weights, shards of at most 5 GB): a base and two models of each size, made
once and kept in ``--folder``. mergekit has dependencies of its own and stays out of constraints.txt; it is installed
beside: ``python -m venv VENV && VENV/bin/pip install mergekit==0.1.5``.

Every way is a process of its own, all ways in turn, ``--repeats`` times. Timed is what the process takes after its
imports until the model is written; peak resident memory is the process's, and for growth its level after the imports
is subtracted. ``copy`` reads the inputs and writes an output of their size, with reads and writes of 4 MiB: nothing can
be faster. Ours is run twice: ``ours`` is the streaming engine, as mergekit neither hashes nor verifies; ``ours, verb``
is the whole command with SHA-256 of every input and output, tokenizer and configuration checks, and verification.
The page cache is warm for all, as far as memory reaches. Medians are compared; load average and all samples stand in
the output, since times mean little on a shared machine. Processor time (user, system) is less disturbed by others.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from functools import cache
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

METHODS = ("linear", "ties", "dare_linear")
HIDDEN = 4096
PLANS = {
    "linear": {"merge_method": "linear", "models": [{"weight": 0.4}, {"weight": 0.6}]},
    "ties": {"merge_method": "ties", "models": [{"weight": 0.5, "density": 0.2}, {"weight": 0.5, "density": 0.2}]},
    "dare_linear": {
        "merge_method": "dare_linear",
        "models": [{"weight": 0.5, "density": 0.1}, {"weight": 0.5, "density": 0.1}],
    },
}


def main() -> None:
    """Make the checkpoints, time every way, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--sizes", type=float, nargs="+", default=[1, 2, 4], help="GB of one checkpoint")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--folder", type=Path, default=Path("merging-benchmark"), help="for checkpoints and outputs")
    parser.add_argument("--mergekit", type=Path, help="the command mergekit-yaml of another environment")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="JSON file")
    parser.add_argument("--worker", nargs=2, metavar=("WAY", "PLAN"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        way, plan = arguments.worker
        work(way, Path(plan), arguments.threads)
        return
    arguments.device = "cpu"
    from measure import write  # not by the workers: mergekit's environment has no reproalign

    rows: list[dict[str, Any]] = []
    for size, method in product(arguments.sizes, arguments.methods):
        rows.append(measure(arguments, size, method))
        write(arguments, {"rows": rows, "mergekit": mergekit_version(arguments.mergekit)}, "safetensors", "numpy")
    Console().print(table(rows))


def measure(arguments: argparse.Namespace, size: float, method: str) -> dict[str, Any]:
    """Run every way of one method on checkpoints of one size."""
    models = [make_checkpoint(arguments.folder, size, seed) for seed in range(3)]
    plan = arguments.folder / f"{method}-{size:g}.yaml"
    entries = [
        {"model": str(folder.resolve()), "parameters": parameters}
        for folder, parameters in zip(models[1:], PLANS[method]["models"], strict=True)
    ]
    content = {**PLANS[method], "models": entries, "dtype": "bfloat16"}
    if method != "linear":
        content["base_model"] = str(models[0].resolve())
    plan.write_text(json.dumps(content))  # JSON is YAML
    ways = ["copy", "ours", "ours, verb", *(["mergekit"] if arguments.mergekit else [])]
    load = os.getloadavg()[0]
    samples: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(arguments.repeats):
        for way in ways:
            samples[way].append(run(arguments, way, plan))
            print(f"{size:g} GB {method} {way}: {samples[way][-1]}", file=sys.stderr, flush=True)
    medians = {
        way: {key: statistics.median(sample[key] for sample in found) for key in found[0]}
        for way, found in samples.items()
    }
    inputs = 2 if method == "linear" else 3
    return {
        "size_gb": size,
        "method": method,
        "load_average_before": load,
        "samples": samples,
        "medians": medians,
        "bytes_per_second": {way: (inputs + 1) * size * 1e9 / found["seconds"] for way, found in medians.items()},
        "time_over_copy": {way: found["seconds"] / medians["copy"]["seconds"] for way, found in medians.items()},
        "mergekit_over": {
            way: {key: medians["mergekit"][key] / medians[way][key] for key in ("seconds", "processor_seconds")}
            for way in ("ours", "ours, verb")
            if arguments.mergekit
        },
    }


def run(arguments: argparse.Namespace, way: str, plan: Path) -> dict[str, float]:
    """Run one way in a process of its own; the output is removed afterwards."""
    output = arguments.folder / "out"
    shutil.rmtree(output, ignore_errors=True)
    python = sys.executable
    if way == "mergekit":
        python = str(arguments.mergekit.parent / "python")
    command = [python, __file__, "--worker", way, str(plan), "--threads", str(arguments.threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{way} failed:\n{done.stderr[-3000:]}")
    shutil.rmtree(output, ignore_errors=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def work(way: str, plan: Path, threads: int) -> None:
    """In the process: import, note the level, merge, print what it took."""
    output = plan.parent / "out"
    action = {"copy": copy, "ours": ours, "ours, verb": ours_verb, "mergekit": mergekit}[way](plan, output, threads)
    before, used, start = peak(), processor_seconds(), time.perf_counter()
    action()
    seconds = time.perf_counter() - start
    facts = {"seconds": seconds, "processor_seconds": processor_seconds() - used, "peak_bytes": peak()}
    print(json.dumps({**facts, "growth_bytes": peak() - before}))


def copy(plan: Path, output: Path, threads: int) -> Any:
    """Read the inputs and write as many bytes as one of them has."""
    content = json.loads(plan.read_text())
    folders = [entry["model"] for entry in content["models"]] + [
        content[key] for key in ("base_model",) if key in content
    ]
    buffer = bytearray(4 << 20)

    def action() -> None:
        output.mkdir()
        for folder in folders:
            for path in sorted(Path(folder).glob("*.safetensors")):
                with path.open("rb", buffering=0) as stream:
                    while stream.readinto(buffer):
                        pass
        for path in sorted(Path(folders[0]).glob("*.safetensors")):
            left = path.stat().st_size
            with (output / path.name).open("wb", buffering=0) as target:
                while left > 0:
                    left -= target.write(memoryview(buffer)[:left])

    return action


def ours(plan: Path, output: Path, threads: int) -> Any:
    """The streaming engine alone."""
    from reproalign.common.merging import stream
    from reproalign.common.merging.config import MergeConfig
    from reproalign.common.merging.inputs import open_inputs
    from reproalign.common.merging.planning import make_plan
    from reproalign.common.merging.resolving import resolve

    settings = resolve(MergeConfig(output_dir=str(output), plan=str(plan)))

    def action() -> None:
        output.mkdir()
        with open_inputs(settings) as inputs, stream.threads(threads) as workers:
            jobs = make_plan(settings, inputs).jobs
            stream.write_model(
                output, jobs, identity="", shard_bytes=5 * 10**9, workers=workers, advance=lambda count: None
            )

    return action


def ours_verb(plan: Path, output: Path, threads: int) -> Any:
    """The whole command."""
    from reproalign.common.cli import main
    from reproalign.common.verbs import merge  # noqa: F401 - its imports are not timed

    words = ["merge", str(plan), f"output_dir={output}", f"threads={threads}", "verify=headers"]

    def action() -> None:
        from contextlib import redirect_stdout

        with redirect_stdout(sys.stderr):
            if main(words):
                raise SystemExit(1)

    return action


def mergekit(plan: Path, output: Path, threads: int) -> Any:
    """Mergekit's own entry point, with lazy loading as its README recommends for little memory."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    config = MergeConfiguration.model_validate(json.loads(plan.read_text()))
    options = MergeOptions(lazy_unpickle=True, num_threads=threads, copy_tokenizer=False, write_model_card=False)
    return lambda: run_merge(config, str(output), options=options)


def make_checkpoint(folder: Path, size: float, seed: int) -> Path:
    """Make a Llama checkpoint of about ``size`` GB in bf16, a layer at a time, unless it is there."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    made = folder / f"{size:g}gb-{seed}"
    if (made / "config.json").is_file():
        return made
    made.mkdir(parents=True, exist_ok=True)
    vocabulary, intermediate = 32_000, 11_008
    layer: dict[str, tuple[int, ...]] = {
        **{f"self_attn.{name}_proj.weight": (HIDDEN, HIDDEN) for name in "qkvo"},
        **{f"mlp.{name}_proj.weight": (intermediate, HIDDEN) for name in ("gate", "up")},
        "mlp.down_proj.weight": (HIDDEN, intermediate),
        "input_layernorm.weight": (HIDDEN,),
        "post_attention_layernorm.weight": (HIDDEN,),
    }
    outside: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocabulary, HIDDEN),
        "lm_head.weight": (vocabulary, HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    layer_bytes = sum(2 * torch.Size(shape).numel() for shape in layer.values())
    layers = max(1, round((size * 1e9 - 4 * vocabulary * HIDDEN) / layer_bytes))
    generators = {"base": torch.Generator().manual_seed(10_000), "own": torch.Generator().manual_seed(seed)}

    @cache
    def draw(shape: tuple[int, ...], first: str) -> torch.Tensor:
        # Models that were fine-tuned from one base: common weights and a small difference. Layers repeat.
        common = torch.randn(shape, generator=generators["base"]) * 0.02
        return (common + torch.randn(shape, generator=generators["own"]) * 0.002 * (seed > 0)).bfloat16()

    shapes = {**outside, **{f"model.layers.{i}.{name}": shape for i in range(layers) for name, shape in layer.items()}}

    def kind(name: str) -> str:
        return name.partition("layers.")[2].partition(".")[2] or name

    shards: list[list[str]] = [[]]
    filled = 0
    for name, shape in shapes.items():
        nbytes = 2 * torch.Size(shape).numel()
        if filled + nbytes > 5e9:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += nbytes
    weight_map = {}
    for index, names in enumerate(shards, start=1):
        file = f"model-{index:05}-of-{len(shards):05}.safetensors"
        save_file(
            {name: draw(shapes[name], kind(name)).clone() for name in names}, made / file, metadata={"format": "pt"}
        )
        weight_map.update(dict.fromkeys(names, file))
    index_content = {"metadata": {}, "weight_map": weight_map}
    (made / "model.safetensors.index.json").write_text(json.dumps(index_content))
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=vocabulary,
        hidden_size=HIDDEN,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=32,
        tie_word_embeddings=False,
        dtype="bfloat16",
    )
    config.save_pretrained(made)
    return made


def peak() -> int:
    """Largest resident memory of this process so far, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # what getrusage says includes the process that started this one
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def processor_seconds() -> float:
    """User and system time of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def mergekit_version(command: Path | None) -> str | None:
    """Version of mergekit in its environment."""
    if command is None:
        return None
    code = "from importlib.metadata import version; print(version('mergekit'), version('torch'))"
    done = subprocess.run([str(command.parent / "python"), "-c", code], capture_output=True, text=True, check=True)
    return f"mergekit {done.stdout.split()[0]} with torch {done.stdout.split()[1]} beside our torch {version('torch')}"


def table(rows: list[dict[str, Any]]) -> Table:
    """Lay out the medians."""
    headers = (
        "GB",
        "method",
        "way",
        "s",
        "processor s",
        "GB/s",
        "over copy",
        "mergekit over it",
        "peak MiB",
        "growth MiB",
    )
    made = Table(*headers, title="merging")
    for row in rows:
        for way, found in row["medians"].items():
            faster = row["mergekit_over"].get(way)
            made.add_row(
                f"{row['size_gb']:g}",
                row["method"],
                way,
                f"{found['seconds']:.1f}",
                f"{found['processor_seconds']:.1f}",
                f"{row['bytes_per_second'][way] / 1e9:.2f}",
                f"{row['time_over_copy'][way]:.2f}",
                "" if faster is None else f"{faster['seconds']:.2f} ({faster['processor_seconds']:.2f} processor)",
                f"{found['peak_bytes'] / 2**20:.0f}",
                f"{found['growth_bytes'] / 2**20:.0f}",
            )
    return made


if __name__ == "__main__":
    main()
