"""``dtm evaluate``: the token mean of held-out responses, its interval, accuracies; resumed, and in two processes."""

from __future__ import annotations

import json
import math
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from reproalign.common.config.model import ModelConfig
from reproalign.common.evaluation.losses import batch_order
from reproalign.common.models import identify
from reproalign.common.models.load import load_causal_lm, load_tokenizer
from reproalign.common.signing import write_signed
from reproalign.common.testing import run_command
from reproalign.dtm.cli import main
from reproalign.dtm.rows import read_rows
from reproalign.dtm.rules import rules_of
from reproalign.dtm.study.metrics import (
    bootstrap_token_mean,
    masked_accuracy,
    perplexity,
    released_accuracy,
    token_mean,
)
from reproalign.dtm.tokens import IGNORED, TokensConfig, resolved, tokenize

CODE = "import sys; from reproalign.dtm.cli import main; sys.exit(main())"
COUNT, LENGTH = 11, 160


def write(path: Path, count: int = COUNT) -> Path:
    draw = random.Random(3)
    words = ["the", "cat", "sat", "on", "a", "mat", "and", "saw", "two", "red", "dogs", "run", "home"]
    rows = [
        {
            "instruction": f"say {index}: {' '.join(draw.choices(words, k=draw.randint(1, 6)))}",
            "output": " ".join(draw.choices(words, k=draw.randint(1, 8))),
            "source": ["one", "two", None][index % 3],
        }
        for index in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def words_of(rows: Path, folder: Path, *words: str) -> list[str]:
    fixed = ["model.name=tiny:llama", "model.dtype=float32", f"tokens.max_length={LENGTH}", "resamples=200"]
    return ["evaluate", f"rows=[{rows}]", f"output_dir={folder}", *fixed, *words]


@pytest.fixture
def evaluate(tmp_path):
    rows = write(tmp_path / "rows.jsonl")

    def call(name: str = "run", *words: str) -> dict:
        assert main(words_of(rows, tmp_path / name, *words)) == 0
        return json.loads((tmp_path / name / "results.json").read_text())

    call.rows, call.folder = rows, tmp_path
    return call


def plain_losses(rows: Path, variant: str = "paper") -> list[tuple[list[int], list[float], list[bool], int]]:
    """Of each row with a supervised token: its targets, their losses and hits from full float64 logits, its length."""
    config = ModelConfig(name="tiny:llama", dtype="float32")
    model, tokenizer = load_causal_lm(config, trainable=False).double(), load_tokenizer(config)
    found = []
    for row in tokenize(
        read_rows([rows]), tokenizer, resolved(TokensConfig(max_length=LENGTH), rules_of(variant).tokens)
    ):
        labels = torch.tensor(row["labels"])[1:]
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        kept = labels != IGNORED
        logits, targets = logits[kept], labels[kept]
        losses = -logits.log_softmax(1).gather(1, targets[:, None]).squeeze(1)
        hits = logits.argmax(1) == targets
        if len(targets):
            found.append((targets.tolist(), losses.tolist(), hits.tolist(), len(row["input_ids"])))
    return found


def test_the_loss_is_the_token_mean_of_a_plain_float64_computation(evaluate):
    results = evaluate("run", "per_token=true", "batch_size=4")
    expected = plain_losses(evaluate.rows)
    everything = [loss for _, losses, _, _ in expected for loss in losses]
    whole = results["measures"][0]
    assert (whole["rows"], whole["tokens"]) == (COUNT, len(everything))
    assert whole["loss"] == pytest.approx(sum(everything) / len(everything), rel=1e-5)
    assert whole["perplexity"] == pytest.approx(math.exp(whole["loss"]))
    assert whole["low"] <= whole["loss"] <= whole["high"]
    hits = [hit for _, _, found, _ in expected for hit in found]
    assert whole["accuracy"] == pytest.approx(sum(hits) / len(hits))
    assert whole["accuracy_released"] is None
    lines = [json.loads(line) for line in (evaluate.folder / "run" / "rows.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(COUNT))
    assert [line["nll"] for line in lines] == pytest.approx([sum(losses) for _, losses, _, _ in expected], rel=1e-5)
    tokens = load_file(evaluate.folder / "run" / "tokens.safetensors")
    assert tokens["ids"].tolist() == [token for ids, _, _, _ in expected for token in ids]
    assert tokens["losses"].tolist() == pytest.approx(everything, rel=1e-4, abs=1e-5)
    assert tokens["offsets"].tolist() == np.cumsum([0, *(len(ids) for ids, *_ in expected)]).tolist()


def test_each_source_has_its_own_token_mean(evaluate):
    results = evaluate()
    lines = [json.loads(line) for line in (evaluate.folder / "run" / "rows.jsonl").read_text().splitlines()]
    measures = {entry["name"]: entry for entry in results["measures"]}
    assert list(measures) == ["all", "one", "two", "(no source)"]  # by rows, then by name
    for name, source in (("one", "one"), ("two", "two"), ("(no source)", None)):
        own = [line for line in lines if line["source"] == source]
        assert measures[name]["rows"] == len(own)
        assert measures[name]["loss"] == pytest.approx(
            sum(row["nll"] for row in own) / sum(row["tokens"] for row in own)
        )
    record = json.loads((evaluate.folder / "run" / "run.json").read_text())
    assert record["metrics"]["sources"]["two"]["loss"] == measures["two"]["loss"]
    assert record["fingerprints"]["weights"]["model"]["sha256"] == results["weights"]
    assert (evaluate.folder / "run" / "results.csv").read_text().splitlines()[0].startswith("name,rows,tokens,loss")
    assert (evaluate.folder / "run" / "plots" / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "words",
    [["batch_size=1"], ["batch_size=5"], ["logprobs.chunk_size=1"], ["logprobs.implementation=plain"]],
    ids=lambda words: words[0],
)
def test_batches_chunks_and_padding_change_nothing(evaluate, words):
    first = evaluate()["measures"]
    other = evaluate("other", *words)["measures"]
    for entry, again in zip(first, other, strict=True):
        assert again["loss"] == pytest.approx(entry["loss"], rel=1e-5)
        assert again["tokens"] == entry["tokens"]


def test_left_padding_changes_nothing(evaluate):
    first, other = evaluate()["measures"][0], evaluate("left", "tokens.padding_side=left")["measures"][0]
    assert other["loss"] == pytest.approx(first["loss"], rel=1e-5)


def test_the_releases_accuracy_counts_prompts_wrong_and_padding_between_batches_right(evaluate):
    results = evaluate("run", "variant=released", "batch_size=4", "tokens.padding_side=right")
    expected = plain_losses(evaluate.rows, "released")
    batches = [expected[start : start + 4] for start in range(0, len(expected), 4)]
    widths = [-(-max(length for *_, length in batch) // 8) * 8 for batch in batches]
    widest = max(widths)
    right = sum(sum(hits) for _, _, hits, _ in expected)
    for batch, width in zip(batches, widths, strict=True):
        right += len(batch) * max(0, widest - 1 - width)
    assert results["measures"][0]["accuracy_released"] == pytest.approx(right / (len(expected) * (widest - 1)))


def test_weights_on_the_hub_are_told_by_their_commit(evaluate, monkeypatch):
    commit = f"org/model@{'1f' * 20}"
    monkeypatch.setattr(identify, "identify_weights", lambda *given: commit)
    assert evaluate()["weights"] == commit


def test_a_sample_is_drawn_by_the_seed_and_keeps_the_order(evaluate):
    def indices(name: str, *words: str) -> list[int]:
        evaluate(name, "sample=5", *words)
        return [json.loads(line)["index"] for line in (evaluate.folder / name / "rows.jsonl").read_text().splitlines()]

    first = indices("first")
    assert first == indices("again") == sorted(first)
    assert len(first) == 5
    assert indices("other", "seed=1") != first


def test_rows_without_text_and_without_room_for_a_response_are_counted(evaluate):
    with evaluate.rows.open("a") as stream:
        stream.write("{}\n" + json.dumps({"instruction": "word " * 200, "output": "late"}) + "\n")
    facts = evaluate()["rows"]
    assert (facts["read"], facts["without_text"], facts["without_supervised_token"], facts["measured"]) == (
        13,
        1,
        1,
        11,
    )


def test_what_an_interruption_left_is_not_computed_again(evaluate):
    whole = evaluate()
    folder = evaluate.folder / "half"
    assert main(words_of(evaluate.rows, folder, "batch_size=2")) == 0
    record = json.loads((folder / "run.json").read_text())
    lines = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    lengths = [length for *_, length in plain_losses(evaluate.rows)]
    # As a killed process leaves it: the first batch, half of the second, and the beginning of a line.
    order = batch_order(lengths, sort=True)
    marked = [{**lines[place], "nll": 1000.0} for place in order[:3]]  # to see who is computed again
    left = [
        {"place": order[index], "tokens": line["tokens"], "nll": line["nll"], "correct": 0, "width": 8}
        for index, line in enumerate(marked)
    ]
    write_signed(folder / "run.json", {**record, "status": "running"})
    (folder / "results.json").unlink()
    (folder / ".losses-0.jsonl").write_text("".join(json.dumps(line) + "\n" for line in left) + '{"pla')
    assert main(words_of(evaluate.rows, folder, "batch_size=2")) == 0
    again = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    kept = [place for place, line in enumerate(again) if line["nll"] == 1000.0]
    assert sorted(kept) == sorted(order[:2])  # a whole batch is kept, half of one is not
    assert [line["nll"] for place, line in enumerate(again) if place not in kept] == pytest.approx(
        [line["nll"] for place, line in enumerate(lines) if place not in kept]
    )
    assert not (folder / ".losses-0.jsonl").exists()
    assert whole["measures"][0]["tokens"] == sum(line["tokens"] for line in again)


@pytest.mark.distributed
def test_two_processes_measure_what_one_does(tmp_path):
    rows = write(tmp_path / "rows.jsonl")
    for name, words in (("one", []), ("two", ["launch=ddp", "launch.processes=2", "launch.main_port=0"])):
        command = [
            sys.executable,
            "-c",
            CODE,
            *words_of(rows, tmp_path / name, "batch_size=2", "per_token=true", *words),
        ]
        done = run_command(command)
        assert done.returncode == 0, done.stderr[-3000:]
    for file in ("rows.jsonl", "tokens.safetensors", "results.csv"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert json.loads((tmp_path / "two" / "run.json").read_text())["processes"] == 2


LOSSES = st.lists(st.tuples(st.floats(0, 50), st.integers(1, 30)), min_size=2, max_size=20)


@given(rows=LOSSES, seed=st.integers(0, 3))
def test_the_bootstrap_is_deterministic_and_within_the_rows_own_means(rows, seed):
    sums, tokens = np.array(rows).T
    options = {"confidence": 0.9, "resamples": 100, "seed": seed}
    found = bootstrap_token_mean(sums, tokens, **options)
    assert found == bootstrap_token_mean(sums, tokens, **options)
    means = sums / tokens
    assert min(means) - 1e-9 <= found.low <= found.high <= max(means) + 1e-9
    assert found.value == pytest.approx(sums.sum() / tokens.sum())


def test_a_wider_confidence_gives_a_wider_interval_and_one_row_gives_none():
    generator = np.random.default_rng(0)
    sums, tokens = generator.random(50) * 9, generator.integers(1, 9, 50)
    narrow, wide = (
        bootstrap_token_mean(sums, tokens, confidence=level, resamples=500, seed=0) for level in (0.5, 0.99)
    )
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high
    alone = bootstrap_token_mean([3.0], [2], confidence=0.9, resamples=100, seed=0)
    assert (alone.value, alone.low, alone.high) == (1.5, None, None)


def test_measures_of_nothing_and_beyond_floats():
    assert math.isnan(token_mean([], []))
    assert math.isnan(masked_accuracy(0, 0))
    assert math.isnan(released_accuracy(0, [1]))
    assert perplexity(1000.0) == math.inf
    assert released_accuracy(0, [9, 9]) == 0.0
    assert released_accuracy(0, [9, 1]) == pytest.approx(7 / 16)  # an untrained model is right on padding
