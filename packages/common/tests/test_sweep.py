"""Several runs in one command: which runs, and what is said of them together."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
import yaml
from toy.cli import main as toy

from reproalign.common.cli import main as reproalign
from reproalign.common.command.app import App, run
from reproalign.common.errors import UserError
from reproalign.common.evaluation.spread import paired_differences, spread
from reproalign.common.invocation import Invocation
from reproalign.common.records import Run
from reproalign.common.verbs import REJECTION_SAMPLING
from reproalign.common.verbs.sweep import SweepConfig, plan_sweep
from reproalign.common.verbs.sweep_report import SweptRun, report

APP = App("toy", "reproalign.common", "reproalign-common", "a toy", REJECTION_SAMPLING)
SAMPLE = ("sample", "prompts=p.jsonl", "model.name=tiny:llama")


def test_the_interval_is_students():
    """Three values 1, 2, 3: s = 1, t(0.975, 2) = 4.3027."""
    found = spread([1.0, 2.0, 3.0])
    assert (found.mean, found.sd) == (2.0, 1.0)
    assert found.high is not None
    assert math.isclose(found.high, 2 + 4.302653 / math.sqrt(3), rel_tol=1e-6)
    assert spread([1.0]).low is None


def test_differences_are_taken_seed_by_seed():
    found = paired_differences({1: 1.0, 2: 5.0, 3: 9.0}, {2: 6.0, 3: 10.5, 4: 0.0})
    assert found is not None
    assert found.values == [1.0, 1.5]
    assert paired_differences({1: 1.0}, {2: 1.0}) is None


def test_every_combination_is_a_run_with_a_folder_named_after_it(tmp_path, capsys):
    words = ["seeds=[1,2]", "sweep.temperature=[0.5,1.0]", f"output_dir={tmp_path / 'a'}"]
    assert run(APP, [*SAMPLE, *words, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition("/")[2] for line in lines] == [
        f"temperature-{value}-seed-{seed}" for value in (0.5, 1.0) for seed in (1, 2)
    ]
    assert all("temperature=" in line and " seed=" in line for line in lines)
    assert not (tmp_path / "a").exists()


def printed(capsys, *words: str) -> dict:
    assert run(APP, ["sample", *words, "--cfg"]) == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_a_sweep_is_values_which_config_takes_back_and_a_file_inside_may_go(tmp_path, capsys):
    inside, file = tmp_path / "inside.yaml", tmp_path / "sweep.yaml"
    inside.write_text("temperature: 0.3\n")
    words = [*SAMPLE[1:], f"config={inside}", "seeds=[1,2]", "sweep.n=[1,4]", f"output_dir={tmp_path / 'a'}"]
    asked = printed(capsys, *words)
    inside.unlink()
    file.write_text(yaml.safe_dump(asked))
    assert printed(capsys, f"config={file}") == asked
    changed = printed(capsys, f"config={file}", "temperature=0.7", "at_once=1")
    assert (changed["run"]["temperature"], changed["at_once"], changed["runs"]) == (0.7, 1, asked["runs"])
    made = Invocation(["toy", "sample", *words], "reproalign.common", "sample", "m:C", "m:f", asked)
    runs = [entry.child.invocation.config for entry in plan_sweep(SweepConfig(**asked), made)]
    assert [(config["n"], config["seed"], config["temperature"]) for config in runs] == [
        (n, seed, 0.3) for n in (1, 4) for seed in (1, 2)
    ]
    assert runs[3]["output_dir"] == str(tmp_path / "a/n-4-seed-2")
    older = SweepConfig(**asked | {"run": asked["run"] | {"gone": 1}})
    with pytest.raises(UserError, match=r"n-1-seed-1.*not this version's \(.*gone.*replay them with the version"):
        plan_sweep(older, made)


@pytest.mark.parametrize(
    ("words", "change", "said"),
    [
        (["seeds=[3]"], {}, "is a sweep's, and says itself what is swept; leave seeds out"),
        (["seed=3"], {}, "seed is given once and swept"),
        ([], {"seeds": [1, 3]}, "seeds and sweep say seed-1, seed-3, and runs has seed-1, seed-2"),
        ([], {"seeds": "many"}, "not what a sweep wrote"),
        ([], {"run": None}, "unknown key 'at_once'"),
        ([], {"verb": {"name": "score"}}, "is a sweep of 'score'"),
        ([], {"runs": {"seed-1": {"temprature": 1}, "seed-2": {}}}, "did you mean 'temperature'?"),
    ],
)
def test_a_sweeps_file_that_was_changed_is_refused(tmp_path, capsys, words, change, said):
    file = tmp_path / "sweep.yaml"
    asked = printed(capsys, *SAMPLE[1:], "seeds=[1,2]", f"output_dir={tmp_path / 'a'}")
    file.write_text(yaml.safe_dump(asked | change))
    assert run(APP, ["sample", f"config={file}", *words]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["seed=[1,2]"], "seed is one number; write seeds=[1,2] to run each"),
        (["temperature=[1,2]"], "temperature takes one value; write sweep.temperature=[A,B] to run each"),
        (["seed=1,2,3"], "seed is one number; write seeds=[1,2] to run each"),
        (["seeds=1,2"], "seeds takes a list of values"),
        (["seeds=[1,1]"], "names a value twice"),
        (["seeds=[1,a]"], "a is no seed"),
        (["seeds=[1,1.7]"], "1.7 is no seed"),
        (["seeds=[1,-1]"], "seeds[1]=-1 must be at least 0"),
        (["seeds=[1,2]", "at_once=0"], "at_once=0 must be at least 1"),
        (["seeds=[1,2]", "at_once=two"], "at_once=two must be a whole number"),
        (["seeds=[1,2]", "seed=3"], "seed is given once and swept"),
        (["sweep.output_dir=[a,b]"], "not for a sweep"),
        (["sweep.temprature=[1]"], "did you mean 'temperature'?"),
        (["-m"], "several runs are seeds=[1,2,3] and sweep.KEY=[A,B]"),
    ],
)
def test_what_is_no_sweep_is_said_in_a_sentence(tmp_path, capsys, words, said):
    assert run(APP, [*SAMPLE, f"output_dir={tmp_path / 'a'}", *words]) == 2
    assert said in capsys.readouterr().err


def finished(folder: Path, beta: float, seed: int) -> SweptRun:
    """A run whose accuracy is 0.5 + beta + seed / 100."""
    config = {"output_dir": str(folder)}
    with Run.open(Invocation(["toy", "train"], "reproalign.common", "train", "m:C", "m:f", config)) as made:
        made.set_metrics({"after": {"accuracy": 0.5 + beta + seed / 100, "broken": math.nan}, "runtime": 3.0})
        for step in (1, 2):
            made.log(step, {"loss": 1 / step + beta + seed / 100})
    return SweptRun({"loss.beta": beta}, seed, folder, json.loads((folder / "run.json").read_text()))


@pytest.mark.usefixtures("pictures")
def test_means_spreads_differences_and_pictures_are_written(tmp_path, capsys):
    results = [finished(tmp_path / f"{beta}-{seed}", beta, seed) for beta in (0.1, 0.2) for seed in (1, 2, 3)]
    invocation = Invocation(["toy"], "reproalign.common", "train", "m:C", "m:f", {"output_dir": str(tmp_path / "all")})
    with Run.open(invocation) as parent:
        report(parent, results)
    found = json.loads((tmp_path / "all/results.json").read_text())
    assert found["settings"]["loss.beta=0.1"].keys() == {"after.accuracy"}
    assert math.isclose(found["settings"]["loss.beta=0.2"]["after.accuracy"]["mean"], 0.72)
    assert math.isclose(found["differences"]["loss.beta=0.2"]["after.accuracy"]["mean"], 0.1)
    assert found["differences"]["loss.beta=0.2"]["after.accuracy"]["sd"] < 1e-12
    rows = list(csv.DictReader((tmp_path / "all/results.csv").open()))
    assert [row["seed"] for row in rows] == ["1", "2", "3"] * 2
    assert {path.name for path in (tmp_path / "all/plots").iterdir()} == {"training.png", "sweep.png"}
    assert "less loss.beta=0.1" in capsys.readouterr().out


@pytest.mark.slow
def test_a_sweep_is_run_and_replayed_run_by_run(tmp_path, capfd):
    words = ["train", "experiment=smoke", "trainer.max_steps=2", "seeds=[1,2]", f"output_dir={tmp_path / 'a'}"]
    assert toy(words) == 0
    capfd.readouterr()
    assert reproalign(["replay", str(tmp_path / "a")]) == 0
    assert " 0 differ" in capfd.readouterr().out
    children = json.loads((tmp_path / "a-replay" / "run.json").read_text())["children"]
    assert all(child["metrics"]["eval_loss"] > 0 for child in children.values())
    assert list(children) == ["seed-1", "seed-2"]
