"""``more-rm raft``: child runs in order, each from the files of the one before, resumable at any of them."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest
from transformers import LlamaConfig

from reproalign.common.files import sha256_file
from reproalign.common.models.tiny import save_tiny
from reproalign.common.signing import write_signed
from reproalign.common.testing import refusal, run_command
from reproalign.more.cli import main

QUICK = ["sample.n=2", "sample.max_new_tokens=4", "align.trainer.max_steps=1", "align.trainer.save_strategy=no"]


@pytest.fixture
def prompts(tmp_path) -> Path:
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"name {number} colours"} for number in ("two", "three", "four")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def reward(tmp_path) -> Path:
    """What is known of a reward model before it is loaded."""
    config = LlamaConfig(architectures=["LlamaForSequenceClassification"], num_labels=1)
    config.save_pretrained(tmp_path / "rm")
    return tmp_path / "rm"


def test_a_dry_run_prints_the_commands_of_the_children(tmp_path, prompts, reward, capsys):
    folder = tmp_path / "out"
    words = [f"prompts={prompts}", "model.name=tiny:llama", "model.dtype=float32", f"reward={reward}", "seed=7"]
    assert main(["raft", *words, *QUICK, "iterations=2", f"output_dir={folder}", "--dry-run"]) == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()[1:]]
    assert [line[1] for line in lines] == ["sample", "score", "select", "align"] * 2
    assert {"n=2", "model.name=tiny:llama", "model.dtype=float32", "seed=7"} <= set(lines[0])
    assert {f"model.name={folder}/1-align/model", "model.dtype=float32", "seed=8"} <= set(lines[4])
    assert f"prompts={folder}/prompts-2.jsonl" in lines[4]
    assert {f"model.name={reward}", f"responses={folder}/2-sample"} <= set(lines[5])
    for line in lines:  # they are command lines that compose
        assert main([*line[1:], "--cfg"]) == 0
    assert not folder.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sample.nn=2"], "1-sample: unknown key 'nn' (did you mean 'n'?)"),
        (["sample.seed=2"], "sample.seed is set by raft itself"),
        (["score.model.name=x"], "score.model.name is set by raft itself"),
        (["align.model.lora.r=4"], "align.model.lora.r is set by raft itself"),
        (["iterations=0"], "iterations=0 must be at least 1"),
        (["prompts_per_iteration=0"], "prompts_per_iteration=0 must be at least 1"),
        (["prompts=none.jsonl"], "none.jsonl"),
        (["reward=tiny:llama"], "reward=tiny:llama is no reward model"),
        (["reward=./nowhere"], "reward=./nowhere: no such folder"),
        (["sample.top_p=2"], "top_p=2.0 must be above 0 and at most 1"),
        (["select.n=9"], "select.n=9 must be at most sample.n=4"),
        (["score.batch_size=0"], "1-score: batch_size=0 must be at least 1"),
        (["align.eval_fraction=1"], "1-align: eval_fraction=1.0 must be at least 0 and below 1"),
        (["align.trainer.max_step=1"], "1-align: unknown key 'trainer.max_step'"),
    ],
)
def test_mistakes_are_found_before_anything_is_run(tmp_path, prompts, reward, capsys, words, message):
    words = [
        f"prompts={prompts}",
        "model.name=tiny:llama",
        f"reward={reward}",
        *words,
        f"output_dir={tmp_path / 'out'}",
    ]
    assert message in refusal("more-rm", main, ["raft", *words], capsys, untouched=tmp_path)


@pytest.mark.slow
def test_two_iterations_and_a_resumption(tmp_path, prompts):
    """A run stopped in a child goes on there, keeps what is finished, and ends with the same weights."""
    reward, folder = tmp_path / "rm", tmp_path / "out"
    train = ["train", "experiment=smoke", "trainer.max_steps=1", f"output_dir={reward}"]
    raft = ["raft", f"prompts={prompts}", f"model.name={save_tiny(tmp_path / 'policy')}", f"reward={reward / 'model'}"]
    raft += [*QUICK, "iterations=2", "prompts_per_iteration=2", f"output_dir={folder}"]

    def run(words: list[str]) -> str:
        code = "import sys; from reproalign.more.cli import main; sys.exit(main())"
        done = run_command([sys.executable, "-c", code, *words])
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stderr

    def record(path: Path) -> dict:
        return json.loads((path / "run.json").read_text())

    run(train)
    run(raft)
    parent = record(folder)
    assert {child["status"] for child in parent["children"].values()} == {"finished"}
    assert len(parent["children"]) == 8
    assert parent["inputs"]["reward"]["run"] == str(reward)
    assert parent["children"]["1-align"]["record_sha256"] == sha256_file(folder / "1-align/run.json")
    second = record(folder / "2-sample")
    assert second["parent"] == str(folder)
    assert second["inputs"]["model.name"]["run"] == str(folder / "1-align")
    assert json.loads((folder / "prompts-2.jsonl").read_text().splitlines()[1])["prompt"][0]["content"] == (
        "name two colours"  # the first again, after the last
    )
    assert {"iteration_1", "iteration_2"} <= parent["metrics"].keys()
    assert (folder / "plots/rewards.png").is_file()

    weights = sha256_file(folder / "2-align/model/model.safetensors")
    (folder / "2-align/model/model.safetensors").unlink()
    for path in (folder, folder / "2-align"):
        write_signed(path / "run.json", record(path) | {"status": "interrupted"})
    printed = run(raft)
    assert "2-select: finished before, kept" in printed
    assert "2-align: finished before, kept" not in printed
    assert sha256_file(folder / "2-align/model/model.safetensors") == weights
