"""What the benchmarks share: options, interleaved timing, peak memory, tables, the facts of the machine, the JSON file.

Timed: repetitions of all ways in turn, so that other work on the machine hits them alike; medians and minima. Memory:
the peak of live tensor bytes above the level at the start, counted tensor by tensor on the CPU (scratch memory inside a
kernel is not seen), by the allocator on a GPU. Times mean little when other work shares the machine: the load average
before and all samples stand in the output.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import statistics
import sys
import time
import weakref
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from reproalign.common.files import write_json

Run = Callable[[], object]


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that operations made and that are still alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {value.untyped_storage().data_ptr() for value in _tensors([args, kwargs])}
        for tensor in _tensors(result):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self.seen | given:
                self._add(storage)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage.data_ptr(), storage.nbytes()
        self.seen.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)

        def free() -> None:
            self.seen.discard(key)
            self.now -= size

        weakref.finalize(storage, free)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for part in value for tensor in _tensors(part)] if isinstance(value, list | tuple) else []


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark has."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--repeats", type=int, default=5, help="of what is timed; a profile is taken once")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    made.add_argument("--output", type=Path, help="JSON file")
    return made


def seconds(run: Run, device: str) -> float:
    """Time one call."""
    gc.collect()
    start = time.perf_counter()
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_bytes(run: Run, device: str) -> int:
    """Measure the peak of one call above its start."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
        run()
        return int(torch.cuda.max_memory_allocated() - start)
    live = LiveBytes()
    with live:
        run()
    return live.peak


def measurements(
    runs: Mapping[str, Run], repeats: int, device: str, label: str, base: str | None = None
) -> dict[str, Any]:
    """Time and memory of every way, each of which has run before, and ratios: of the first way to each of the others,
    or, with ``base``, of each of the others to it.
    """
    load = os.getloadavg()[0]
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in track(range(repeats), description=label, console=Console(stderr=True)):
        for name, run in runs.items():
            times[name].append(seconds(run, device))
    medians = {name: statistics.median(values) for name, values in times.items()}
    minima = {name: min(values) for name, values in times.items()}
    memory = {name: peak_bytes(run, device) for name, run in runs.items()}
    return {
        "load_average_before": load,
        "median_seconds": medians,
        "minimum_seconds": minima,
        "seconds": times,
        "peak_bytes": memory,
        "time_ratio": _ratios(medians, base),
        "time_ratio_of_minima": _ratios(minima, base),
        "memory_ratio": _ratios(memory, base),
    }


def _ratios(values: dict[str, Any], base: str | None) -> dict[str, float]:
    if base is not None:
        return {name: value / values[base] for name, value in values.items() if name != base}
    first, *others = values
    return {name: values[first] / values[name] for name in others}


def table(title: str, rows: list[dict[str, Any]], *keys: str) -> Table:
    """Lay out :func:`measurements`, a line for each way of each row; ``keys`` say which row, ``skipped`` why not."""
    headers = ("load", "way", "s", "least s", "MiB", "time", "of minima", "memory")
    made = Table(*keys, *headers, title=title)
    for row in rows:
        place = [*(str(row[key]) for key in keys), f"{row['load_average_before']:.1f}"]
        for way, median in row["median_seconds"].items():
            costs = [f"{median:.3f}", f"{row['minimum_seconds'][way]:.3f}", f"{row['peak_bytes'][way] / 2**20:.0f}"]
            ratios = [row[key].get(way) for key in ("time_ratio", "time_ratio_of_minima", "memory_ratio")]
            made.add_row(*place, way, *costs, *("" if ratio is None else f"{ratio:.2f}" for ratio in ratios))
        for way, reason in row.get("skipped", {}).items():
            made.add_row(*place, f"{way}: {reason}")
    return made


def write(arguments: argparse.Namespace, results: dict[str, Any], *packages: str) -> None:
    """Write the results to ``--output``, if given, with the command, the machine and the versions of ``packages``."""
    if arguments.output is None:
        return
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(arguments).items()}
    machine = {
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name() if arguments.device.startswith("cuda") else "cpu",
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", *packages)},
    }
    command = f"python {Path(sys.argv[0]).as_posix()} {' '.join(sys.argv[1:])}"
    write_json(arguments.output, {"command": command, "arguments": settings, "machine": machine, **results})


def _cpu_name() -> str:
    """Return the processor's name as Linux gives it, or the architecture."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
