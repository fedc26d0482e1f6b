"""A small part of the fault drill, on the toy paper; all of it is ``nox -s faults``."""

from __future__ import annotations

import json
import random
import sys
from importlib import import_module

import pytest

from papers import CLIS, ROOT
from reproalign.common.testing import run_command

sys.path.insert(0, str(ROOT))

from faults import cases, corruption
from faults.forks import MAINS
from faults.state import differences, state


def test_nothing_is_lost_and_nothing_kept_quiet(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    counts = {"controls": 1, "kills": 2, "corruptions": 0, "starts": 1, "signals": 1, "disks": 1, "finished": 2}
    given = [word for kind, count in counts.items() for word in (f"--{kind}", str(count))]
    places = ["--folder", str(tmp_path / "work"), "--output", str(tmp_path / "drill.json")]
    command = [sys.executable, "-m", "faults", "--toy", "--examples", "0", "--jobs", "1", *given, *places]
    done = run_command(command)
    assert done.returncode == 0, done.stdout
    found = json.loads((tmp_path / "drill.json").read_text())
    assert {kind: sum(ends.values()) for kind, ends in found["counts"]["kind"].items()} == {
        kind: count for kind, count in counts.items() if count
    }
    lines = (tmp_path / "work" / "trials.jsonl").read_text().splitlines()
    (tmp_path / "work" / "trials.jsonl").write_text("\n".join(lines[:-1]) + '\n{"tri')
    assert run_command(command).returncode == 0, "a drill that was interrupted goes on"
    assert set(lines[:-1]) < set((tmp_path / "work" / "trials.jsonl").read_text().splitlines())


def test_what_differs_is_named_and_times_do_not_count(tmp_path):
    for name, loss, seconds in (("a", 1.0, 1), ("b", 1.0, 2), ("c", 2.0, 1)):
        (tmp_path / name / "checkpoint-2").mkdir(parents=True)
        (tmp_path / name / "checkpoint-2" / "x").write_text(name)
        record = {"status": "finished", "started": name, "training": {"loss": loss, "train_runtime": seconds}}
        (tmp_path / name / "run.json").write_text(json.dumps(record))
        (tmp_path / name / "weights").write_bytes(b"same")
    a, b, c = (state(tmp_path / name) for name in "abc")
    assert differences(a, b) == []
    assert differences(a, c) == ["run.json"]
    assert differences(a, a | {"more": "x"}) == ["more"]


def test_every_damage_alters_its_file(tmp_path):
    said = set()
    for seed in range(40):
        path = tmp_path / f"file-{seed}"
        path.write_bytes(bytes(range(1, 200)))
        said.add(corruption.harm(path, random.Random(seed)).split()[0])
        assert not path.exists() or path.read_bytes() != bytes(range(1, 200))
    assert said == {"flip", "cut", "zeroing", "delete"}


def test_cases_come_after_what_they_read():
    names = [case.name for case in cases.chosen([], cases.CASES)]
    assert sorted(names) == sorted(cases.CASES)
    for case in cases.CASES.values():
        assert all(names.index(need) < names.index(case.name) for need in case.needs)
    assert [case.name for case in cases.chosen(["more-select"], cases.CASES)][-1] == "more-select"


@pytest.mark.parametrize("command", [cli.APP.command for cli in CLIS])
def test_every_paper_has_cases(command):
    assert any(case.words[0] == command for case in cases.CASES.values())


@pytest.mark.parametrize("name", cases.CASES)
def test_a_case_is_a_command_that_is_understood(name, capsys):
    command, *words = cases.CASES[name].words
    assert import_module(MAINS[command]).main([*words, "--cfg"]) == 0, capsys.readouterr().err
