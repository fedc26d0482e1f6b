"""Run folders and records: what may be written where, what is kept, and when two records agree."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from reproalign.common.cli import main
from reproalign.common.command.app import App, run
from reproalign.common.errors import UserError
from reproalign.common.files import sha256_file
from reproalign.common.invocation import Invocation
from reproalign.common.records import Run, fingerprint_folder
from reproalign.common.records.compare import agrees, compare
from reproalign.common.records.show import record_table
from reproalign.common.signing import write_signed
from reproalign.common.verbs import REJECTION_SAMPLING


def invocation(folder: Path, **config) -> Invocation:
    values = {"output_dir": str(folder), "seed": 1, "resume": "auto", "loss": {"beta": 0.1}, **config}
    return Invocation(["mmpo", "train"], "reproalign.common", "train", "m:C", "m:f", values)


def record(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def finished(folder: Path, metrics: dict | None = None, sha: str = "ab") -> Path:
    with Run.open(invocation(folder)) as run:
        run.set_metrics(metrics or {"accuracy": 0.5, "train_runtime": 3.0})
        run.add_fingerprint("weights", "model", sha)
    return folder


def test_a_run_tells_its_status_from_the_start_to_the_end(tmp_path):
    folder = tmp_path / "runs" / "a"
    with Run.open(invocation(folder)) as run:
        assert record(folder)["status"] == "running"
        run.log(1, {"loss": 0.7})
        run.log(2, {"loss": math.nan})
        run.set_metrics({"worst": -math.inf})
    found = record(folder)
    assert found["status"] == "finished"
    assert found["metrics"] == {"worst": "-Infinity"}
    assert found["wall_seconds"] > 0
    assert found["peak_memory"]["resident_bytes"] > 2**20
    assert {"torch", "transformers"} <= found["versions"].keys()
    assert [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] == [
        {"step": 1, "loss": 0.7},
        {"step": 2, "loss": "NaN"},
    ]


def test_a_mistake_leaves_the_runs_beside_it_alone(tmp_path):
    """The folder above, which this run made, is another run's by now."""
    runs = tmp_path / "runs"

    def start_another_and_fail() -> None:
        finished(runs / "b")
        raise UserError("no")

    with pytest.raises(UserError), Run.open(invocation(runs / "deep" / "a")):
        start_another_and_fail()
    assert [path.name for path in runs.iterdir()] == ["b"]
    assert record(runs / "b")["status"] == "finished"


@pytest.mark.parametrize(("error", "status"), [(RuntimeError("no"), "failed"), (KeyboardInterrupt(), "interrupted")])
def test_a_run_that_ends_badly_says_so_and_can_be_resumed(tmp_path, error, status):
    folder = tmp_path / "a"
    with pytest.raises(type(error)), Run.open(invocation(folder)):
        raise error
    first = record(folder)
    assert first["status"] == status
    with Run.open(invocation(folder, resume="auto")):
        pass
    second = record(folder)
    assert (second["status"], second["resumptions"], second["started"]) == ("finished", 1, first["started"])
    assert second["wall_seconds"] > first["wall_seconds"]


@pytest.mark.parametrize("existing", [False, True])
def test_a_users_mistake_leaves_nothing_behind(tmp_path, existing):
    folder = tmp_path / "runs" / "deep" / "a"
    if existing:
        folder.mkdir(parents=True)

    def mistaken() -> None:
        with Run.open(invocation(folder)) as run:
            run.log(1, {"loss": 1.0})
            raise UserError("bad row")

    with pytest.raises(UserError, match="bad row"):
        mistaken()
    assert folder.exists() == existing
    assert (tmp_path / "runs").exists() == existing
    assert not existing or not any(folder.iterdir())


def test_a_resumed_run_refuses_what_was_changed_meanwhile(tmp_path):
    def attempt(reward: str, model: str) -> None:
        with Run.open(invocation(tmp_path / "run")) as run:
            run.add_fingerprint("weights", "model", model, made=True)
            run.add_fingerprint("weights", "reward", reward)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attempt("ab", "cd")
    with pytest.raises(KeyboardInterrupt):
        attempt("ab", "ef")  # what the run makes may differ
    with pytest.raises(UserError, match="weights 'reward' is not what it was"):
        attempt("ba", "ef")
    assert record(tmp_path / "run")["fingerprints"]["weights"]["reward"] == {"sha256": "ab"}


def test_folders_that_may_not_be_written(tmp_path):
    folder = finished(tmp_path / "a")
    with pytest.raises(UserError, match="holds this very run, finished"):
        Run.open(invocation(folder))
    with pytest.raises(UserError, match=r"belongs to another run, `mmpo train` \(differs in: loss\.beta\)"):
        Run.open(invocation(folder, loss={"beta": 0.2}))
    with pytest.raises(KeyboardInterrupt), Run.open(invocation(tmp_path / "b")):
        raise KeyboardInterrupt
    with pytest.raises(UserError, match="unfinished, and resume=never"):
        Run.open(invocation(tmp_path / "b", resume="never"))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="files that are not a run's"):
        Run.open(invocation(tmp_path / "c"))


def test_a_run_that_failed_at_its_start_leaves_its_folder_to_another(tmp_path):
    with pytest.raises(ValueError, match="at once"), Run.open(invocation(tmp_path / "a")):
        raise ValueError("at once")
    (tmp_path / "a" / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="belongs to another run"):
        Run.open(invocation(tmp_path / "a", loss={"beta": 0.2}))
    (tmp_path / "a" / "metrics.jsonl").unlink()
    with Run.open(invocation(tmp_path / "a", loss={"beta": 0.2})):
        pass
    assert record(tmp_path / "a")["config"]["loss"] == {"beta": 0.2}
    assert record(tmp_path / "a")["status"] == "finished"


def test_a_run_that_died_at_its_start_leaves_its_folder_free(tmp_path):
    """Temporary files, and what was written before the first record."""
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / ".run.json.x3f.tmp").write_text("{")
    (folder / ".model.tmp").mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(invocation(folder).config))
    with Run.open(invocation(folder)) as run:
        assert sorted(path.name for path in folder.iterdir()) == [".run.lock", "config.yaml", "run.json"]
        run.keep()
    assert record(folder)["resumptions"] == 0


def test_a_run_whose_record_was_lost_goes_on_if_its_configuration_is_this_one(tmp_path, capsys):
    folder = tmp_path / "a"
    with pytest.raises(KeyboardInterrupt), Run.open(invocation(folder)):
        raise KeyboardInterrupt
    (folder / "checkpoint-1").mkdir()
    (folder / "run.json").unlink()
    with pytest.raises(UserError, match="files that are not a run's"):
        Run.open(invocation(folder, loss={"beta": 0.2}))
    with Run.open(invocation(folder)):
        assert capsys.readouterr().err.count("run.json is lost") == 1
    assert (record(folder)["resumptions"], (folder / "checkpoint-1").is_dir()) == (1, True)


def test_other_processes_write_nothing(tmp_path):
    with Run.open(invocation(tmp_path / "a"), is_main=False) as run:
        run.log(1, {"loss": 1.0})
        run.set_metrics({"loss": 1.0})
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("left", "right", "tolerance", "same"),
    [
        (1.0, 1.0, 0, True),
        (1.0, 1.0 + 1e-9, 0, False),
        (1.0, 1.0 + 1e-9, 1e-8, True),
        (1e6, 1e6 + 1, 1e-5, True),
        (1e-9, 2e-9, 1e-8, True),
        ("NaN", "NaN", 0, True),
        ("NaN", 1.0, 1, False),
        ("Infinity", "Infinity", 0, True),
        ("Infinity", "-Infinity", 1, False),
        ("a", "b", 1, False),
    ],
)
def test_numbers_agree_within_the_tolerance(left, right, tolerance, same):
    assert agrees(left, right, float(tolerance)) == same


def test_comparison_sets_timing_aside_and_misses_nothing():
    left = {"metrics": {"accuracy": 0.5, "train_runtime": 1.0}, "fingerprints": {"weights": {"model": {"sha256": "a"}}}}
    right = {"metrics": {"accuracy": 0.5, "extra": 1.0}, "fingerprints": {"weights": {"model": {"sha256": "b"}}}}
    exact = compare(left, right)
    assert exact.agreed == ["metrics.accuracy"]
    assert exact.ignored == ["metrics.train_runtime"]
    assert exact.differing == [("metrics.extra", "missing", 1.0), ("weights.model", "a", "b")]
    assert [key for key, _, _ in compare(left, right, tolerance=1e-6).differing] == ["metrics.extra"]
    assert not compare(left, right, tolerance=1e-6, ignore=("extra",)).differing


def test_metrics_of_the_runs_that_a_run_started_are_compared_where_both_records_have_them():
    def parent(*accuracies: float) -> dict:
        runs = {f"lr-0.1-seed-{n}": {"metrics": {"accuracy": a, "seconds": a}} for n, a in enumerate(accuracies)}
        return {"metrics": {"accuracy": 0.5}, "children": runs}

    found = compare(parent(0.4, 0.6), parent(0.5, 0.5))  # of the same mean
    assert [key for key, _, _ in found.differing] == [f"children.lr-0.1-seed-{n}.accuracy" for n in (0, 1)]
    assert found.ignored == [f"children.lr-0.1-seed-{n}.seconds" for n in (0, 1)]
    assert not compare(parent(0.4, 0.6), parent(0.5, 0.5), ignore=("accuracy",)).differing
    older = {**parent(), "children": {"lr-0.1-seed-0": {"status": "finished"}}}
    assert compare(parent(0.4), older).agreed == ["metrics.accuracy"]


def test_show_and_verify_answer_by_exit_code(tmp_path, capsys):
    a, b = finished(tmp_path / "a"), finished(tmp_path / "b")
    other = finished(tmp_path / "c", {"accuracy": 0.6})
    assert main(["show", str(a), str(b)]) == 0
    assert "mmpo train" in capsys.readouterr().out
    assert main(["verify", str(a), str(b / "run.json")]) == 0
    assert main(["verify", str(a), str(other)]) == 1
    assert "metrics.accuracy" in capsys.readouterr().out
    near = finished(tmp_path / "d", {"accuracy": 0.6000001})
    assert main(["verify", str(near), str(other)]) == 1
    assert "0.6000001" in capsys.readouterr().out  # six digits would be the same
    assert main(["verify", str(a), str(other), "--ignore", "accuracy"]) == 0
    assert main(["verify", str(a), str(tmp_path / "none")]) == 2
    (tmp_path / "broken.json").write_text("{")
    assert main(["verify", str(a), str(tmp_path / "broken.json")]) == 2
    assert main(["verify", str(a), str(b), "--tolerance", "-1"]) == 2


def test_a_folder_of_runs_and_one_of_a_run_are_answered_with_the_run(tmp_path, capsys):
    for name in ("mmpo/a", "b"):
        finished(tmp_path / name)
    (tmp_path / "b" / "model").mkdir()
    for folder, near in (
        (tmp_path, f", such as {tmp_path / 'b'}, {tmp_path / 'mmpo' / 'a'}\n"),
        (tmp_path / "x", "\n"),
    ):
        assert main(["show", str(folder)]) == 2
        assert capsys.readouterr().err.endswith(f"give a run's folder{near}")
    assert main(["show", str(tmp_path / "b" / "model")]) == 2
    assert capsys.readouterr().err.endswith(f"such as {tmp_path / 'b'}\n")


def test_show_leaves_out_what_has_its_default_in_a_data_set_too():
    config = {"data": {"sets": {"mine": {"path": "a.jsonl", "name": None, "fraction": 1.0}}}, "seed": 42}
    made = {"config": config, "schema": "reproalign.common.config.run:DataRunConfig"}
    shown = {str(cell) for cell in record_table({"a": made}).columns[0].cells}
    assert "data.sets.mine.path" in shown
    assert not shown & {"data.sets.mine.name", "data.sets.mine.fraction", "seed"}


def test_a_verb_without_launch_and_resume_is_replayed_too(tmp_path):
    scored, folder = tmp_path / "scored.jsonl", tmp_path / "a"
    scored.write_text(json.dumps({"prompt": "x", "responses": ["a", "b"], "scores": [1, 2]}) + "\n")
    app = App("toy", "reproalign.common", "reproalign-common", "a paper", verbs=REJECTION_SAMPLING)
    assert run(app, ["select", f"scored={scored}", f"output_dir={folder}"]) == 0
    assert main(["replay", str(folder)]) == 0
    assert (tmp_path / "a-replay" / "selected.jsonl").read_bytes() == (folder / "selected.jsonl").read_bytes()


@pytest.mark.parametrize("config", [{"gone": 1}, {"keep": "worst"}, {"n": 0}])
def test_a_record_whose_options_are_gone_names_the_version_that_can_replay_it(tmp_path, capsys, config):
    finished(tmp_path / "a")
    was = record(tmp_path / "a")
    was |= {"schema": "reproalign.common.verbs.config:SelectConfig", "git": {"commit": "c0ffee", "dirty": False}}
    write_signed(tmp_path / "a" / "run.json", was | {"config": config | {"output_dir": "a"}})
    assert main(["replay", str(tmp_path / "a")]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "the record's options are not this version's" in said
    assert said.endswith("of reproalign, commit c0ffee")


def test_fingerprints_follow_the_weights_alone(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "b" / "README.md").write_text("other")
    assert fingerprint_folder(tmp_path / "a") == fingerprint_folder(tmp_path / "b")
    (tmp_path / "b" / "model.safetensors").write_bytes(b"weight5")
    assert fingerprint_folder(tmp_path / "a") != fingerprint_folder(tmp_path / "b")
    with pytest.raises(FileNotFoundError, match=r"no \*\.safetensors"):
        fingerprint_folder(tmp_path)


def test_a_record_names_the_runs_that_its_inputs_came_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    finished(Path("runs/a"))
    finished(Path("runs/b"))
    (tmp_path / "runs/a/model").mkdir()
    (tmp_path / "rows.jsonl").touch()
    config = {"model": {"name": "runs/a/model"}, "data": {"paths": ["runs/b", "rows.jsonl"]}, "template": "~nobody/x"}
    with Run.open(invocation(Path("runs/c"), **config)):
        pass
    assert main(["show", "runs/c"]) == 0  # keys with brackets are no markup
    inputs = record(Path("runs/c"))["inputs"]
    assert {key: entry["run"] for key, entry in inputs.items()} == {
        "model.name": "runs/a",
        "data.paths[0]": "runs/b",
    }
    assert inputs["model.name"]["record_sha256"] == sha256_file(Path("runs/a/run.json"))
    assert inputs["model.name"]["status"] == "finished"


def test_the_run_that_started_one_is_its_parent_and_no_input(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    finished(Path("runs/p"))
    child = replace(invocation(Path("runs/p/1"), prompts="runs/p/config.yaml"), parent="runs/p")
    with Run.open(child) as run:
        assert run.record["parent"] == "runs/p"
        assert run.record["inputs"] == {}


def test_a_long_text_in_a_configuration_is_no_path(tmp_path):
    run = Run.open(invocation(tmp_path / "run", note="word " * 1000))
    assert run.record["inputs"] == {}


def test_show_draws_where_a_run_came_from(tmp_path, monkeypatch, capsys):
    """Through all generations; runs that are gone or have changed since are marked."""
    monkeypatch.chdir(tmp_path)
    finished(Path("runs/a"))
    for name, source in (("b", "a"), ("c", "b")):
        with Run.open(invocation(Path(f"runs/{name}"), model=f"runs/{source}")):
            pass
    assert main(["show", "runs/c"]) == 0
    drawn = capsys.readouterr().out
    assert "model from runs/b: mmpo train" in drawn
    assert "model from runs/a: mmpo train" in drawn
    write_signed(tmp_path / "runs/a/run.json", record(Path("runs/a")) | {"status": "failed"})
    assert main(["show", "runs/c"]) == 0
    assert "runs/a (its record has changed since)" in capsys.readouterr().out
    shutil.rmtree("runs/b")
    assert main(["show", "runs/c"]) == 0
    assert "runs/b (gone)" in capsys.readouterr().out


def test_show_draws_the_runs_that_a_run_started_and_what_these_came_from(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    finished(Path("runs/start"))
    with Run.open(invocation(Path("runs/all"))) as parent:
        for name, source in (("first", "runs/start"), ("second", "runs/all/first")):
            with Run.open(replace(invocation(Path(f"runs/all/{name}"), model=source), parent="runs/all")):
                pass
            parent.set(
                "children", {**parent.record["children"], name: {"run": f"runs/all/{name}", "status": "finished"}}
            )
    assert main(["show", "runs/all"]) == 0
    drawn = capsys.readouterr().out
    assert "started first: finished" in drawn
    assert "model from runs/start: mmpo train" in drawn
    assert "model from first" in drawn  # not drawn whole again
    assert main(["show", "runs/all/first"]) == 0
    assert "started by runs/all" in capsys.readouterr().out


def test_what_is_on_the_hub_is_known_by_its_commit_and_not_by_a_hash(tmp_path):
    identities = {"a": 64 * "0", "b": "org/model@" + 40 * "1", "c": "org/model@main"}
    with Run.open(invocation(tmp_path / "run")) as run:
        for name, identity in identities.items():
            run.add_fingerprint("weights", name, identity)
    entries = record(tmp_path / "run")["fingerprints"]["weights"]
    assert [list(entry) for entry in entries.values()] == [["sha256"], ["commit"], ["unresolved"]]
    before = {"fingerprints": {"weights": {name: {"sha256": identity} for name, identity in identities.items()}}}
    assert not compare(before, record(tmp_path / "run")).differing  # records of version 0.1 agree


def test_private_files_get_the_mode_of_all_others(tmp_path):
    """safetensors writes weights that only their owner can read; a group shares runs."""
    with Run.open(invocation(tmp_path / "a")) as run:
        weights = run.dir / "model" / "model.safetensors"
        weights.parent.mkdir()
        weights.touch(mode=0o600)
    assert weights.stat().st_mode == (run.dir / "run.json").stat().st_mode
