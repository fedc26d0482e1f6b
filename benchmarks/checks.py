"""What locks, seals, signed records, journals and safe points cost: their share of a command's time, by profile.

A command runs in this process under cProfile, with its real work. What it spends in the modules below, with all that
they call (hashing, writing manifests, waiting for the disk), is held against the whole. A share is no difference of two
noisy times. It is an estimate: the profiler makes Python's calls dearer than they are, in the checks and in all else.

    python benchmarks/checks.py --output results/benchmarks/checks.json
    python benchmarks/checks.py --command "mmpo train experiment=smoke" --output …
"""

from __future__ import annotations

import cProfile
import os
import pstats
import shlex
import tempfile
from collections import defaultdict
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import measure
from rich.table import Table

import reproalign.common
from reproalign.common.console import result_console

MODULES = (
    *("manifests", "integrity", "signing", "journal", "leftovers"),
    *("records/lock", "records/holder", "records/handed_on", "records/checking"),
    *("launch/signals", "training/interruption"),
)
THROUGH = {"get_batch_samples"}  # hands a call on to the Trainer's own work
FROM_SMOLLM2 = "trainer.max_steps=8 trainer.save_steps=4 trainer.logging_steps=1"
COMMANDS = (
    f"mmpo train experiment=smollm2-135m {FROM_SMOLLM2}",
    "more-rm sample model=smollm2-135m prompts=demo:pairs-eval max_prompts=8 n=2 max_new_tokens=32",
)


def shares(profile: cProfile.Profile) -> dict[str, Any]:
    """Return the seconds of a profile: in all, and of each module of :data:`MODULES`, entered from outside."""
    core = Path(reproalign.common.__path__[0])
    ours = {str(core / f"{name}.py"): name for name in MODULES}
    stats: Any = pstats.Stats(profile)
    spent: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for (file, _, name), (_, _, own, _, callers) in stats.stats.items():
        if file not in ours:
            continue
        if name in THROUGH:
            spent[ours[file]] += own
            continue
        for (caller, _, through), (count, _, _, cumulative) in callers.items():
            if caller not in ours or through in THROUGH:
                spent[ours[file]] += cumulative
                calls[ours[file]] += count
    return {"seconds": stats.total_tt, "checks": dict(spent), "calls": dict(calls)}


def measured(line: str, folder: Path) -> dict[str, Any]:
    """Run a command in ``folder`` under the profiler, with a cache of its own.

    Raises:
        RuntimeError: if it fails.
    """
    command, *words = shlex.split(line)
    (script,) = entry_points(group="console_scripts", name=command)
    os.environ["REPROALIGN_CACHE"] = str(folder / "cache")
    profile = cProfile.Profile()
    code = profile.runcall(script.load(), [*words, f"output_dir={folder / 'run'}"])
    if code:
        raise RuntimeError(f"{line}: exit code {code}")
    found = shares(profile)
    return {"run": line, **found, "share": sum(found["checks"].values()) / found["seconds"]}


def main() -> None:
    """Measure, print a table, write the JSON file."""
    parser = measure.parser(__doc__ or "")
    parser.add_argument("--command", action="append", help="may be given several times; runs of SmolLM2 if it is not")
    arguments = parser.parse_args()
    rows = []
    for line in arguments.command or COMMANDS:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measured(line, Path(folder)))
    table = Table("command", "s", "in checks, s", "share")
    for row in rows:
        table.add_row(row["run"], f"{row['seconds']:.1f}", f"{sum(row['checks'].values()):.3f}", f"{row['share']:.2%}")
    result_console().print(table)
    measure.write(arguments, {"rows": rows}, "transformers")


if __name__ == "__main__":
    main()
