"""``dtm run``: what it plans, what it refuses before anything is run, and one run from rows to report."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from reproalign.common.files import sha256_file
from reproalign.common.invocation import Invocation, structured
from reproalign.common.options.compose import compose
from reproalign.common.testing import refusal, run_command
from reproalign.dtm.cli import APP, RUN, main
from reproalign.dtm.report import write_report
from reproalign.dtm.run import make_plan

BENCHMARKS = ["evaluate_on=dtm", "benchmarks.suite.run_code=true"]
HELD_OUT = "disperse.data.eval_fraction=0.1"


def planned(*words: str):
    composed = compose(APP.package, RUN.config_name, RUN.schema, ["model=tiny", "output_dir=runs/x", *words])
    invocation = Invocation(["dtm", "run"], APP.package, "run", RUN.schema, RUN.target, composed.config)
    return make_plan(structured(invocation.schema, invocation.config), invocation)


def test_the_plan_is_the_paper_from_rows_to_benchmarks():
    plan = planned("disperse.data.eval_fraction=0.1", *BENCHMARKS, "sub_models=true", "disperse.clusters=2")
    assert [child.name for child in plan.training] == ["disperse", "train", "vanilla", "merge-dtm"]
    models = ["base", "cluster-0", "cluster-1", "vanilla", "dtm"]
    assert list(plan.models) == models
    assert {kind: list(part) for kind, part in plan.evaluations.items()} == {"losses": models, "benchmarks": models}


def test_all_models_start_from_one_base_by_one_training():
    plan = planned("train.trainer.learning_rate=1e-3", "train.tokens.max_length=64", "model.lora.r=8")
    each, vanilla = (child.invocation.config for child in plan.training[1:3])
    for key in ("model", "trainer", "tokens", "seed", "init_seed", "dispersal", "variant"):
        assert each[key] == vanilla[key], key
    assert (each["clusters"], vanilla["cluster"]) == ("all", None)
    assert each["model"]["lora"]["r"] == 8


def test_what_is_beside_differs_in_what_was_given_alone():
    plan = planned("beside.l2={regularizer: {name: l2, weight: 0.1}}", "train.trainer.max_steps=3")
    vanilla, l2 = (child.invocation.config for child in plan.training[2:4])
    assert {key for key in vanilla if vanilla[key] != l2[key]} == {"regularizer", "output_dir"}


def test_vanilla_and_the_average_can_be_left_out():
    plan = planned("vanilla=false", "merges={dtm: null, ties: {method: ties}}")
    assert [child.name for child in plan.training] == ["disperse", "train", "merge-ties"]
    assert plan.models["ties"] == "runs/x/merge-ties/model"


def test_full_fine_tuning_is_merged_into_a_model():
    plan = planned("model.lora.enabled=false")
    assert not plan.training[1].invocation.config["model"]["lora"]["enabled"]
    assert plan.models["dtm"] == "runs/x/merge-dtm/model"


def test_a_merge_of_adapters_is_what_its_method_and_space_make():
    plan = planned("merges={f: {space: factor}, w: {space: full}, e: {method: ensemble}}")
    made = {name: folder.rpartition("/")[2] for name, folder in plan.models.items() if "/merge-" in folder}
    assert made == {"dtm": "adapter", "f": "adapter", "w": "model", "e": "model"}


def test_the_variant_is_that_of_every_child():
    plan = planned("variant=released", "disperse.data.eval_fraction=0.1")
    assert {child.invocation.config["variant"] for child in plan.children} == {"released"}


def test_a_merge_that_the_release_has_not_may_be_had_beside():
    merge = planned("variant=released", "merges.whole={method: ensemble, variant: paper}").training[-1]
    assert (merge.name, merge.invocation.config["variant"]) == ("merge-whole", "paper")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train.clusters=all"], "train.clusters is set by run itself"),
        (["train.trainer.learning_rat=1"], "train: "),
        (["disperse.clusterz=3"], "disperse: unknown key 'clusterz'"),
        (["disperse.clusters=0"], "disperse: clusters=0 must be at least 1"),
        (["disperse.method=kmeens"], "disperse: unknown method 'kmeens' (did you mean 'kmeans'?)"),
        (["disperse.data=5"], "disperse: "),
        (["train.trainer.learning_rate=fast"], "train: trainer.learning_rate=fast must be a number"),
        (["train.trainer.lr_scheduler_type=cosin"], "train: unknown trainer.lr_scheduler_type 'cosin'"),
        (["train.data_ratio=2"], "train: data_ratio=2.0 must be above 0 and at most 1"),
        (["train.launch.slurm=true"], "train: launch.slurm"),
        (["train.launch.strategy=dpp"], "train: unknown launch.strategy 'dpp'"),
        (["beside.l2={regularizer: {name: l2}}"], "l2: regularizer.name=l2 needs regularizer.weight"),
        (["merges.ties={method: ties, density: 2}"], "merge-ties: density=2"),
        (["merges.dtm.verify=maybe"], "merge-dtm: unknown verify 'maybe'"),
        (["merges.dtm.weights=[1,1,1]"], "merge-dtm: weights=[1, 1, 1]: 3 numbers for 4 models"),
        (["merges.f={method: fisher}"], "merge-f: statistics is not set"),
        (["merges.f={method: fisher, statistics: auto, floor: 0}"], "merge-f: floor=0"),
        (["variant=released", "merges.d={method: dare, drop: 1}"], "merge-d: drop=1.0 must be at least 0"),
        ([HELD_OUT, "evaluate.batch_size=0"], "evaluate-base: batch_size=0 must be at least 1"),
        (["evaluate_on=dtm"], "humaneval, mbpp: programs that the model writes would be run here"),
        ([*BENCHMARKS, "benchmarks.suite.tasks=[arc_challnge]"], "suite.tasks: "),
        (["merges.dtm.method=averge"], "average"),
        (["beside.base={}"], "beside.base"),
        (["beside.a={}", "merges.a={}"], "two models alike"),
        (["evaluate.batch_size=4"], "evaluate.*: no rows are held out"),
        (["benchmarks.suite.limit=4"], "benchmarks.*: there is no suite to evaluate on"),
        (["disperse.data.eval_fraction=0.1", "evaluate.rows=[x]"], "evaluate.rows is set by run itself"),
        (["evaluate_on=dmt"], "did you mean 'dtm'"),
    ],
)
def test_mistakes_are_found_before_anything_is_run(words, said, tmp_path, capsys):
    words = ["run", "model=tiny", f"output_dir={tmp_path / 'run'}", *words]
    assert said in refusal("dtm", main, words, capsys, untouched=tmp_path)


def test_a_report_of_many_columns_is_several_tables_that_fit(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    sources = {f"source_number_{index}": {"loss": index / 7} for index in range(9)}
    measured = {"loss": 2.0, "low": 1.5, "high": 2.5, "sources": sources}
    write_report({"losses": dict.fromkeys(("base", "vanilla"), measured)}, tmp_path)
    printed = capsys.readouterr().out
    assert all(printed.count(name) == 1 for name in sources)
    assert max(map(len, printed.splitlines())) <= 80
    with (tmp_path / "losses.csv").open() as stream:
        assert [len(row) for row in csv.reader(stream)] == [11, 11, 11]


def smoke(folder: Path) -> list[str]:
    code = "import sys; from reproalign.dtm.cli import main; sys.exit(main(sys.argv[1:]))"
    return [sys.executable, "-c", code, "run", "experiment=smoke", f"output_dir={folder}"]


def run_until(command: list[str], record: Path) -> None:
    """Start a command and kill it, with what it started, once ``record`` is there."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True) as run:
        while run.poll() is None and not record.is_file():
            time.sleep(0.05)
        assert run.poll() is None, "the run ended before it could be killed"
        os.killpg(run.pid, signal.SIGKILL)


@pytest.mark.slow
def test_killed_twice_and_resumed_it_gives_the_same_models_and_report(tmp_path):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert run_command(smoke(whole)).returncode == 0
    run_until(smoke(resumed), resumed / "train" / "cluster-1" / "run.json")
    run_until(smoke(resumed), resumed / "evaluate-vanilla" / "run.json")
    finished = (resumed / "train" / "cluster-0" / "run.json").read_bytes()
    done = run_command(smoke(resumed))
    assert done.returncode == 0, done.stderr
    assert (resumed / "train" / "cluster-0" / "run.json").read_bytes() == finished

    for model in ("train/cluster-0/model", "train/cluster-1/model", "vanilla/model", "merge-dtm/adapter"):
        one, other = (sha256_file(folder / model / "adapter_model.safetensors") for folder in (whole, resumed))
        assert one == other, model
    assert (whole / "losses.csv").read_text() == (resumed / "losses.csv").read_text()
    with (whole / "losses.csv").open() as stream:
        assert [row["model"] for row in csv.DictReader(stream)] == ["base", "vanilla", "dtm", "ties"]
    record = json.loads((resumed / "run.json").read_text())
    assert record["resumptions"] == 2
    assert {child["status"] for child in record["children"].values()} == {"finished"}
    assert record["metrics"]["losses"]["dtm"]["sources"].keys() == {"demo"}
