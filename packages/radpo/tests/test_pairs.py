"""``radpo pairs``: the beginnings of texts, their continuations, and a classifier's best against its worst."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import RobertaConfig, RobertaForSequenceClassification

from reproalign.common.generation.samples import Sampled
from reproalign.common.models.tiny_tokenizers import tiny_tokenizer
from reproalign.radpo.cli import main
from reproalign.radpo.pairs import best_and_worst

TEXTS = ["I hate bad films, and this one is among the worst.", "Horrible!", "This one is a joy from beginning to end."]


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=130,
        pad_token_id=0,
        id2label={0: "NEGATIVE", 1: "POSITIVE"},
        initializer_range=0.5,
    )
    for part in (RobertaForSequenceClassification(config), tokenizer):
        part.save_pretrained(tmp_path / "classifier")
    return tmp_path / "classifier"


def words(tmp_path: Path, classifier: Path, *more: str) -> list[str]:
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    options = ["model=tiny", "model.chat_template=text", "prompt_tokens=4", "max_length=12", "n=3", "batch_size=6"]
    files = ["data=imdb", f"data.sets.imdb.path={tmp_path / 'texts.jsonl'}", f"classifier.name={classifier}"]
    return ["pairs", *options, *files, f"output_dir={tmp_path / 'run'}", *more]


def test_pairs_are_the_best_and_the_worst_continuation_and_can_be_trained_on(tmp_path, classifier):
    assert main(words(tmp_path, classifier)) == 0
    rows = [json.loads(line) for line in (tmp_path / "run" / "pairs.jsonl").read_text().splitlines()]
    scored = [json.loads(line) for line in (tmp_path / "run" / "scored.jsonl").read_text().splitlines()]
    assert len(rows) == len(TEXTS)
    for row, one, text in zip(rows, scored, TEXTS, strict=True):
        assert text.startswith(row["text"])
        assert [row["chosen_score"], row["rejected_score"]] == [max(one["scores"]), min(one["scores"])]
        for side in ("chosen", "rejected"):
            continuation = row[side].removeprefix(row["text"])
            assert one["scores"][one["responses"].index(continuation)] == row[f"{side}_score"]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["metrics"]["pairs"] == 3
    assert {"policy", "classifier"} <= record["fingerprints"]["weights"].keys()
    trained = [
        "experiment=smoke",
        "data=imdb_sentiment",
        f"data.sets.imdb_sentiment.path={tmp_path / 'run' / 'pairs.jsonl'}",
    ]
    steps = ["trainer.max_steps=1", "trainer.per_device_train_batch_size=1", "trainer.gradient_accumulation_steps=1"]
    assert main(["train", *trained, *steps, f"output_dir={tmp_path / 'train'}"]) == 0


@pytest.mark.parametrize(
    ("responses", "scores", "expected"),
    [
        ([" good", " bad", " fine"], [0.9, 0.1, 0.5], ("A film good", "A film bad")),
        ([" a", " b", " c"], [0.5, 0.5, 0.5], None),  # no preference
        ([" ", " b"], [0.9, 0.1], None),  # a blank one
        ([" b", "b "], [0.9, 0.1], None),  # the same one twice
    ],
)
def test_what_makes_a_pair(responses, scores, expected):
    row = best_and_worst(Sampled(0, [{"role": "user", "content": "A film"}], responses, scores))
    assert (row and (row["chosen"], row["rejected"])) == expected


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["max_length=4"], "max_length=4 must be more than prompt_tokens=4"),
        (["n=1"], "n=1: a pair needs two continuations"),
        (["temperature=0"], "temperature=0 would make all continuations the same"),
        (["classifier.label=GOOD"], "classifier.label 'GOOD'"),
        (["classifier.name=./nowhere"], "classifier.name=./nowhere: no such folder"),
    ],
)
def test_settings_that_make_no_pairs(tmp_path, classifier, capsys, more, message):
    assert main(words(tmp_path, classifier, *more)) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
