"""``ama align raft``: which prompts an iteration takes, what it records, and its runs in order, resumable at any."""

from __future__ import annotations

import csv
import json
import math
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reproalign.ama.align.prompt_batches import iteration_prompts, next_batch, released_batch
from reproalign.ama.align.reward_record import RELEASED_RULES, record_line, reward_record
from reproalign.ama.cli import main
from reproalign.common.errors import UserError
from reproalign.common.files import sha256_file, write_json
from reproalign.common.generation.samples import Sampled
from reproalign.common.generation.select import SelectionRules
from reproalign.common.models.tiny import save_tiny
from reproalign.common.models.tiny_tokenizers import tiny_tokenizer
from reproalign.common.reward.rules import NOTE, RewardRules
from reproalign.common.signing import write_signed
from reproalign.common.testing import refusal, run_command
from reproalign.common.testing.tiny import tiny_reward_model

QUICK = ["n=3", "max_new_tokens=6", "prompts_per_iteration=2", "train.trainer.max_steps=1"]
QUICK += [
    "train.trainer.save_strategy=no",
    "train.trainer.per_device_train_batch_size=1",
    "train.trainer.warmup_steps=0",
]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"name {number} colours"} for number in ("two", "three", "four", "five")]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"prompt": "long " * 300}]))
    return path


@pytest.fixture
def reward(tmp_path: Path) -> Path:
    folder = tmp_path / "rm"
    tiny_reward_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    write_json(folder / NOTE, RewardRules(layout="lmflow").note())
    return folder


@given(count=st.integers(1, 40), size=st.integers(1, 50), iterations=st.integers(1, 6), seed=st.integers(0, 99))
def test_no_prompt_is_taken_twice_before_each_was_taken_once(count, size, iterations, seed):
    batches = [next_batch(count, size, number, seed) for number in range(iterations)]
    assert {len(batch) for batch in batches} == {size}
    taken = [index for batch in batches for index in batch]
    for start in range(0, len(taken), count):
        turn = taken[start : start + count]
        assert len(set(turn)) == len(turn)
    assert set(taken) <= set(range(count))


@given(count=st.integers(0, 60), size=st.integers(1, 40), ranks=st.integers(1, 5), seed=st.integers(0, 99))
def test_the_releases_slices_go_over_every_shard_once(count, size, ranks, seed):
    shard, share = count // ranks, size // ranks
    for rank in range(ranks):
        taken = [
            index
            for number in range(-(-shard // share) if share else 0)
            for index in released_batch(count, size, number, seed, rank=rank, ranks=ranks)
        ]
        assert sorted(taken) == (list(range(rank * shard, (rank + 1) * shard)) if share else [])
        assert released_batch(count, size, shard + 1, seed, rank=rank, ranks=ranks) == []


def test_variants_of_an_iterations_prompts():
    assert iteration_prompts(10, 4, 0, 1, ranks=1) == [[8, 4, 7, 0]]
    assert [len(part) for part in iteration_prompts(23, 8, 2, 7, ranks=4)] == [1] * 4
    with pytest.raises(UserError, match=r"iteration 4 has no prompts: there are 10 for 1 process,"):
        iteration_prompts(10, 4, 3, 1, ranks=1)
    assert len(iteration_prompts(10, 4, 3, 1, ranks=None)[0]) == 4
    assert sorted(iteration_prompts(10, 99, 3, 1, ranks=None)[0]) == list(range(10))


@given(
    scores=st.lists(st.lists(st.floats(-9, 9), min_size=3, max_size=3), min_size=1, max_size=5),
    data=st.data(),
)
def test_the_record_of_one_process_by_brute_force(scores, data):
    texts = [data.draw(st.lists(st.sampled_from(["fine words", "# no", "x"]), min_size=3, max_size=3)) for _ in scores]
    rows = [Sampled(number, [], text, row) for number, (text, row) in enumerate(zip(texts, scores, strict=True))]
    pairs = [list(zip(text, row, strict=True)) for text, row in zip(texts, scores, strict=True)]
    good = [[reward for text, reward in row if text == "fine words"] for row in pairs]
    record = reward_record([rows], RELEASED_RULES["live"].selection)
    if not any(good):
        assert all(map(math.isnan, record))
        return
    best = np.mean([max(rewards) for rewards in good if rewards])
    assert record[0] == pytest.approx(np.mean(scores))
    assert record[1] == record[3] == pytest.approx(best)
    first = reward_record([rows], RELEASED_RULES["commented_first"].selection, "first")
    assert first == [pytest.approx(np.mean([row[0] for row in scores])), *record[1:]]
    zeros = reward_record([rows], RELEASED_RULES["live_eval"].selection)
    counted = [reward if text == "fine words" else 0.0 for row in pairs for text, reward in row]
    assert zeros[2] == pytest.approx(np.mean(counted))


def test_processes_weigh_by_what_they_stored():
    good, bad = ["fine words"], ["#"]
    first = [Sampled(0, [], good, [1.0]), Sampled(1, [], good, [3.0])]
    second = [Sampled(2, [], good, [8.0]), Sampled(3, [], bad, [4.0])]
    record = reward_record([first, second], SelectionRules(discard="lmflow"))
    assert record[0] == pytest.approx((2 * 2 + 6) / 3)  # the mean of all four is 4
    assert record[1] == pytest.approx((2 * 2 + 8) / 3)
    assert record_line([1.0, math.nan]) == "1.0   nan   \n"


def words(tmp_path: Path, prompts: Path, reward: Path, *more: str) -> list[str]:
    policy = save_tiny(tmp_path / "policy")
    folder = tmp_path / "out"
    given = [f"prompts={prompts}", f"model.name={policy}", f"reward={reward}", f"output_dir={folder}"]
    return ["align", "raft", *given, *QUICK, *more]


def test_a_dry_run_prints_the_commands_of_the_children(tmp_path, prompts, reward, capsys):
    folder = tmp_path / "out"
    assert main([*words(tmp_path, prompts, reward, "iterations=2", "seed=7"), "--dry-run"]) == 0
    first, *rest = capsys.readouterr().out.splitlines()
    assert first == "4 prompts of at most 256 tokens (1 longer); 2 iterations of 2 prompts:"
    lines = [shlex.split(line) for line in rest]
    assert [line[1:3] if line[1] == "align" else [line[1]] for line in lines[:4]] == [
        ["sample"],
        ["score"],
        ["select"],
        ["align", "sft"],
    ]
    assert {"layout=lmflow", "n=3", "max_new_tokens=6", "clean=lmflow", "seed=7"} <= set(lines[0])
    assert "discard=lmflow" in lines[2]
    assert {f"rows=[{folder}/1-select]", "variant=paper", "layout=lmflow"} <= set(lines[3])
    assert {f"model.name={folder}/1-train/model", "seed=8", f"prompts={folder}/prompts-2.jsonl"} <= set(lines[4])
    for line in lines:  # they are command lines that compose
        assert main([*line[1:], "--cfg"]) == 0
    assert not folder.exists()


def test_the_released_variant_draws_lengths_and_joins_texts_without_a_blank(tmp_path, prompts, reward, capsys):
    given = words(tmp_path, prompts, reward, "iterations=2", "variant=released", "max_new_tokens=null", "ranks=2")
    assert main([*given, "--dry-run"]) == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()[1:]]
    assert {"min_new_tokens=64", "max_new_tokens=128", "seed=42"} <= set(lines[0])
    assert "text.response_separator=none" in lines[1]
    assert "min_reward=-1000.0" in lines[2]
    assert {"response_separator=none", "variant=released"} <= set(lines[3])
    assert "seed=42" in lines[4]  # every call of the release begins with the same seed


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["sample.nn=2"], "1-sample: unknown key 'nn' (did you mean 'n'?)"),
        (["sample.n=2"], "sample.n is set by align raft itself"),
        (["select.discard=none"], "select.discard is set by align raft itself"),
        (["train.rows=[x]"], "train.rows is set by align raft itself"),
        (["iterations=0"], "iterations=0 must be at least 1"),
        (["ranks=2"], "ranks=2 is of variant=released"),
        (["variant=released", "iterations=9"], "iteration 3 has no prompts"),
        (["filters=all"], "unknown filters 'all'"),
        (["record=last"], "unknown record 'last'"),
        (["prompts=none.jsonl"], "prompts=none.jsonl: no such file"),
        (["reward=tiny:llama"], "reward=tiny:llama is no reward model"),
        (["min_new_tokens=6"], "min_new_tokens=6 must be below max_new_tokens=6"),
        (["temperature=0"], "temperature=0 would make all n=3 responses the same"),
        (["max_prompt_length=2"], "all 5 prompts are longer than max_prompt_length=2 tokens"),
        (["train.launch.slurm=true"], "1-train: launch.slurm prints a script"),
        (["train.launch.processes=2"], "1-train: launch.strategy=single"),
        (["train.max_length=1"], "1-train: max_length=1 must be at least 2"),
    ],
)
def test_mistakes_are_found_before_anything_is_run(tmp_path, prompts, reward, capsys, more, message):
    few = [] if any(word.startswith("iterations=") for word in more) else ["iterations=2"]
    given = words(tmp_path, prompts, reward, *few, *more)
    assert message in refusal("ama", main, given, capsys, untouched=tmp_path)


@pytest.mark.slow
def test_two_iterations_and_a_resumption(tmp_path, prompts, reward):
    """R7: an iteration samples from the model before it; a run stopped in a child goes on to the same weights."""
    given = words(tmp_path, prompts, reward, "iterations=2", "keep_samples=true", "filters=none")
    folder = tmp_path / "out"

    def run() -> str:
        code = "import sys; from reproalign.ama.cli import main; sys.exit(main())"
        done = run_command([sys.executable, "-c", code, *given])
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stderr

    def record(path: Path) -> dict:
        return json.loads((path / "run.json").read_text())

    run()
    parent = record(folder)
    assert {child["status"] for child in parent["children"].values()} == {"finished"}
    assert list(parent["children"]) == [
        f"{k}-{step}" for k in (1, 2) for step in ("sample", "score", "select", "train")
    ]
    assert record(folder / "2-sample")["inputs"]["model.name"]["run"] == str(folder / "1-train")
    pool = [json.loads(line) for line in (folder / "pool.jsonl").read_text().splitlines()]
    assert [row["iteration"] for row in pool] == [1, 1, 2, 2]
    assert len({row["id"] for row in pool}) == 4
    assert len({row["prompt"][0]["content"] for row in pool}) == 4  # each of the four short prompts once
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert [row["reward"] for row in pool] == [max(row["scores"]) for row in samples]
    measured = parent["metrics"]["iteration_1"]
    assert measured["record"][0] == pytest.approx(measured["mean_reward_of_all"])
    assert measured["record"][1] == pytest.approx(measured["mean_reward"])
    assert len((folder / "reward_record.txt").read_text().splitlines()) == 2
    with (folder / "trajectory.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["model"] for row in rows] == [str(folder / f"{k}-train/model") for k in (1, 2)]
    assert all(Path(row["model"], "model.safetensors").is_file() for row in rows)
    assert (folder / "plots/rewards.png").is_file()

    weights, before = (sha256_file(folder / f"{k}-train/model/model.safetensors") for k in (2, 1))
    assert len({weights, before, sha256_file(tmp_path / "policy/model.safetensors")}) == 3  # every iteration learned
    stopped = ["2-select", "2-train"]
    for name in ("pool.jsonl", "samples.jsonl", "trajectory.csv", "2-train/model/model.safetensors"):
        (folder / name).unlink()
    for path in (folder, *(folder / name for name in stopped)):
        write_signed(path / "run.json", record(path) | {"status": "interrupted"})
    printed = run()
    assert "2-score: finished before, kept" in printed
    assert not any(f"{name}: finished before, kept" in printed for name in stopped)
    assert sha256_file(folder / "2-train/model/model.safetensors") == weights
    assert [json.loads(line) for line in (folder / "pool.jsonl").read_text().splitlines()] == pool
