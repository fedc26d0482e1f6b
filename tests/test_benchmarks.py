"""Every benchmark runs, at its least size: nothing else calls them. Their times mean nothing here.

``merging`` is left out, whose least checkpoint has half a gigabyte; `nox -s types` checks the types of all of them.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


LEAST = (
    "checks --command 'mmpo train experiment=smoke'",
    "disperse --rows 1000 --dim 8 --texts",
    "head_precision --vocab 64 --hidden 16 --tokens 16 --steps 3 --seeds 1",
    "more_step --hidden 64 --domains 2 --layers 1 --tokens 8",
    "preference_step --tokens 16 --hidden 64 --layers 1",
    "ratio_gradient --tokens 8 --vocab 512",
    "token_statistics --vocab 512 --tokens 64 --hidden 64 --length 16",
)


def test_every_benchmark_is_tried():
    scripts = {path.stem for path in BENCHMARKS.glob("*.py") if "__main__" in path.read_text(encoding="utf-8")}
    assert {words.split()[0] for words in LEAST} == scripts - {"merging"}


@pytest.mark.slow
@pytest.mark.parametrize("words", LEAST, ids=lambda words: words.split()[0])
def test_a_benchmark_measures(tmp_path, words):
    """Those that compare ways check that the ways agree before they measure them."""
    name, *rest = shlex.split(words)
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *rest, "--repeats", "1", "--output", "found.json"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr
    assert json.loads((tmp_path / "found.json").read_text())["machine"]["versions"]
