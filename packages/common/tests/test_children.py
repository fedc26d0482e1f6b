"""Runs that a run starts: in turn or at the same time, on GPUs of their own, resumed, interrupted, failing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from reproalign.common.config.launch import LaunchConfig
from reproalign.common.errors import UserError
from reproalign.common.invocation import Invocation
from reproalign.common.launch.children import Child
from reproalign.common.launch.plan import Hardware
from reproalign.common.launch.together import slots

PACKAGE = '''
"""A package whose one verb sleeps, and one that starts several of them."""
import json, os, time
from dataclasses import dataclass, field
from pathlib import Path
from omegaconf import MISSING
from reproalign.common.command.app import App, run
from reproalign.common.config.launch import LaunchConfig
from reproalign.common.errors import UserError
from reproalign.common.invocation import Verb
from reproalign.common.launch.children import plan_child
from reproalign.common.launch.together import run_children
from reproalign.common.records import Run

@dataclass
class NapConfig:
    output_dir: str = MISSING
    seconds: float = 0.0
    end: str = "well"
    launch: LaunchConfig = field(default_factory=LaunchConfig)

@dataclass
class NapsConfig(NapConfig):
    ends: list[str] = field(default_factory=list)
    at_once: int | None = None

NAP = Verb("nap", "sleep", "nap", "napping:NapConfig", "napping:nap", launchable=True)
NAPS = Verb("naps", "sleep often", "naps", "napping:NapsConfig", "napping:naps")
APP = App("naps", "napping", "napping", "naps", (NAP, NAPS))

def nap(config, invocation):
    with Run.open(invocation) as run:
        began = time.time()
        time.sleep(config.seconds)
        if config.end == "mistake":
            raise UserError("seconds: too many")
        if config.end == "crash" and not Path("well").exists():
            raise RuntimeError("fell off the bed")
        print("slept", flush=True)
        run.set_metrics({"began": began, "ended": time.time()})

def naps(config, invocation):
    names = {f"nap-{n}": [f"end={end}", f"seconds={config.seconds}"] for n, end in enumerate(config.ends)}
    children = [plan_child(invocation, name, NAP, words) for name, words in names.items()]
    with Run.open(invocation) as run:
        run_children(run, children, at_once=config.at_once)

def main(words=None):
    return run(APP, words)
'''


@pytest.fixture
def napping(tmp_path, monkeypatch):
    """Return what starts the command ``naps`` in a process of its own."""
    package = tmp_path / "lib" / "napping"
    (package / "configs").mkdir(parents=True)
    (package / "__init__.py").write_text(PACKAGE)
    (package / "configs" / "__init__.py").write_text("")
    for verb in ("nap", "naps"):
        (package / "configs" / f"{verb}.yaml").write_text("defaults:\n  - launch: single\n  - _self_\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(package.parent), *filter(None, sys.path)]))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")

    def start(*words: str) -> subprocess.Popen[str]:
        code = "import sys; from napping import main; sys.exit(main())"
        command = [sys.executable, "-c", code, "naps", *words, "output_dir=out"]
        return subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)

    return start


def statuses(folder: Path) -> dict[str, str]:
    record = json.loads((folder / "out" / "run.json").read_text())
    return {name: entry["status"] for name, entry in record["children"].items()}


def test_a_run_that_ended_well_meanwhile_is_no_mistake(tmp_path, napping):
    config = {"output_dir": "out", "seconds": 0.0, "end": "well", "launch": asdict(LaunchConfig())}
    invocation = Invocation(["naps", "nap"], "napping", "nap", "napping:NapConfig", "napping:nap", config)
    (tmp_path / "nap.json").write_text(json.dumps(asdict(invocation)))
    command = [sys.executable, "-m", "reproalign.common.launch.child", "nap.json"]
    for expected in ("slept\n", ""):
        ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False)
        assert (ended.returncode, ended.stdout) == (0, expected), ended.stderr


def child(processes: int = 1) -> Child:
    config = {"launch": {"processes": processes}, "output_dir": "x"}
    return Child("a", Invocation(["x"], "x", "x", "x", "x", config))


@pytest.mark.parametrize(
    ("processes", "at_once", "gpus", "visible", "expected"),
    [
        (1, None, 0, None, [None]),
        (1, 3, 0, None, [None, None, None]),
        (1, None, 3, None, ["0", "1", "2"]),
        (1, None, 3, "4,6,7", ["4", "6", "7"]),
        (1, 2, 4, "MIG-a,MIG-b,MIG-c,MIG-d", ["MIG-a", "MIG-b"]),
        (2, None, 5, None, ["0,1", "2,3"]),
        (4, 1, 8, None, ["0,1,2,3"]),
        (8, None, 4, None, [None]),  # the child says what it lacks
    ],
)
def test_every_child_gets_gpus_of_its_own(processes, at_once, gpus, visible, expected):
    found = slots([child(processes)] * 6, at_once, Hardware(gpus, deepspeed=False), visible)
    assert [slot.get("CUDA_VISIBLE_DEVICES") for slot in found] == expected


def test_no_more_places_than_children():
    assert len(slots([child()] * 2, None, Hardware(8, deepspeed=False), None)) == 2


def test_more_than_there_are_gpus_for():
    with pytest.raises(UserError, match="at_once=3 children of 2 processes need 6 GPUs"):
        slots([child(2)] * 4, 3, Hardware(4, deepspeed=False), None)


@pytest.mark.slow
def test_children_run_at_the_same_time_and_what_they_print_is_kept(tmp_path, napping):
    process = napping("ends=[well,well,well]", "seconds=3", "at_once=3")
    assert process.wait(300) == 0
    assert statuses(tmp_path) == dict.fromkeys(("nap-0", "nap-1", "nap-2"), "finished")
    times = [json.loads((tmp_path / f"out/nap-{n}/run.json").read_text())["metrics"] for n in range(3)]
    assert max(time["began"] for time in times) < min(time["ended"] for time in times)
    noted = json.loads((tmp_path / "out/run.json").read_text())["children"]
    assert [noted[f"nap-{n}"]["metrics"] for n in range(3)] == times
    assert "slept" in (tmp_path / "out" / "nap-1.log").read_text()
    assert not list((tmp_path / "out").glob(".nap-*"))


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [1, 2])
def test_a_failing_child_is_named_others_end_and_the_same_command_goes_on(tmp_path, napping, at_once):
    words = ["ends=[crash,well,well]", "seconds=1", f"at_once={at_once}"]
    process = napping(*words)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "nap-0 failed" in errors
    found = statuses(tmp_path)
    assert found["nap-0"] == "failed"
    assert found.get("nap-1", "") == ("finished" if at_once == 2 else "")
    assert found.get("nap-2", "") in ("", "finished")  # started only if another was done before
    (tmp_path / "well").touch()
    if at_once == 2:
        kept = tmp_path / "out/nap-1/config.yaml"
        text = kept.read_text()
        kept.write_text(text.replace("well", "wull"))
        refused = napping(*words)
        _, errors = refused.communicate(timeout=300)
        assert refused.returncode == 2
        assert "naps: error: nap-1: out/nap-1/config.yaml was altered" in errors
        assert "delete out/nap-1 to have it made again" in errors
        kept.write_text(text)
    again = napping(*words)
    _, errors = again.communicate(timeout=300)
    assert again.returncode == 0, errors
    assert set(statuses(tmp_path).values()) == {"finished"}
    if at_once == 2:
        assert "nap-1: finished before, kept" in errors


@pytest.mark.slow
def test_a_mistake_that_a_child_finds_is_the_parents(tmp_path, napping):
    process = napping("ends=[mistake,mistake]", "at_once=2")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    assert "naps: error: nap-0: seconds: too many" in errors or "naps: error: nap-1: seconds: too many" in errors


@pytest.mark.slow
def test_an_interruption_reaches_the_children(tmp_path, napping):
    process = napping("ends=[well,well]", "seconds=60", "at_once=2")
    records = [tmp_path / f"out/nap-{n}/run.json" for n in range(2)]
    deadline = time.time() + 200
    while not all(path.is_file() for path in records) and time.time() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(100) == 130
    assert statuses(tmp_path) == {"nap-0": "interrupted", "nap-1": "interrupted"}
