"""``dtm disperse`` as a user runs it: what it leaves, what it refuses, and that nothing changes its result."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from transformers import BertConfig, BertModel

from reproalign.common.models.tiny_tokenizers import CORPUS, tiny_tokenizer
from reproalign.common.signing import write_signed
from reproalign.common.testing import refusal, run_command
from reproalign.dtm.cli import main
from reproalign.dtm.rows import read_labels, read_rows

CODE = "import sys; from reproalign.dtm.cli import main; sys.exit(main())"
WORDS = " ".join(CORPUS).split()


@pytest.fixture(scope="module")
def embedder(tmp_path_factory) -> Path:
    """A sentence-transformers model: a random BERT of one layer, and the mean over its tokens."""
    folder = tmp_path_factory.mktemp("embedder")
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=64, pad_token_id=0, **sizes)
    BertModel(config).save_pretrained(folder / "bert")
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(folder / "bert")
    SentenceTransformer(str(folder / "bert"), device="cpu").save(str(folder / "st"))
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    """Ninety chats of two sources, of which two do not fit."""
    generator = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("rows") / "chats.jsonl"
    with path.open("w") as stream:
        for number in range(90):
            asked, answered = (" ".join(generator.choice(WORDS, size)) for size in (5, 12))
            turns = [{"role": "user", "content": f"{number} {asked}"}, {"role": "assistant", "content": answered}]
            if number in (7, 50):
                turns.reverse()
            stream.write(json.dumps({"dataset": f"source {number % 2}", "messages": turns}) + "\n")
    return path


@pytest.fixture
def kmeans(rows, embedder):
    """The words of a run by k-means."""
    small = ["embedding.batch_size=3", "embedding.shard_size=16", "clusters=3"]
    return ["method=kmeans", f"data.sets.chats.path={rows}", f"embedding.model={embedder / 'st'}", *small]


def disperse(folder: Path, *words: str) -> dict:
    assert main(["disperse", *words, f"output_dir={folder}"]) == 0
    return json.loads((folder / "dispersal.json").read_text())


def results(folder: Path) -> dict[str, bytes]:
    """What may not depend on processes and interruptions."""
    found = [folder / "rows.jsonl", folder / "labels.json", *folder.glob("embeddings/*"), folder / "report.json"]
    return {path.name: path.read_bytes() for path in found}


@pytest.mark.parametrize(("words", "method"), [([], "random_equal"), (["variant=released"], "random")])
def test_each_variant_has_its_random_split(tmp_path, rows, words, method):
    """Equal portions are the paper's; the release draws."""
    facts = disperse(tmp_path / "run", f"data.sets.chats.path={rows}", *words)
    labels = read_labels(tmp_path / "run" / "labels.json", facts["rows"])
    assert facts["method"] == method
    assert facts["sizes"] == np.bincount(labels, minlength=4).tolist()
    assert (facts["sizes"] == [22] * 4) == (method == "random_equal")


def test_what_does_not_fit_is_listed_or_stays_as_an_empty_object(tmp_path, rows):
    paper = disperse(tmp_path / "paper", f"data.sets.chats.path={rows}")
    released = disperse(tmp_path / "released", f"data.sets.chats.path={rows}", "variant=released")
    assert (paper["rows"], paper["rejected"], paper["placeholders"]) == (88, 2, 0)
    assert (released["rows"], released["rejected"], released["placeholders"]) == (90, 0, 2)
    rejects = [json.loads(line)["place"] for line in (tmp_path / "paper" / "rejects.jsonl").read_text().splitlines()]
    assert rejects == [f"{rows} line 8", f"{rows} line 51"]
    found = read_rows([tmp_path / "released" / "rows.jsonl"])
    assert [place for place, row in enumerate(found) if row["output"] is None] == [7, 50]


def test_kmeans_leaves_rows_labels_embeddings_and_a_report(tmp_path, kmeans):
    folder = tmp_path / "run"
    facts = disperse(folder, *kmeans, "data.eval_fraction=0.1")
    assert (facts["rows"], facts["held_out"]) == (79, 9)
    assert len(read_labels(folder / "labels.json", 79)) == sum(facts["sizes"]) == 79
    assert facts["embedding"]["max_seq_length"] == 64
    assert facts["embedding"]["dim"] == 16
    report = json.loads((folder / "report.json").read_text())
    assert [cluster["rows"] for cluster in report["cluster"]] == facts["sizes"]
    assert all(len(cluster["nearest"]) == min(5, cluster["rows"]) for cluster in report["cluster"])
    assert sum(count for cluster in report["cluster"] for count in cluster["sources"].values()) == 79
    text = (folder / "report.md").read_text()
    assert "Cluster 2: rows nearest to its centroid" in text
    assert {path.name for path in (folder / "plots").iterdir()} == {"clusters.png", "sources.png"}
    record = json.loads((folder / "run.json").read_text())
    assert record["fingerprints"]["weights"].keys() == {"embedder"}
    assert record["fingerprints"]["data"].keys() == {"chats", "rows.jsonl", "embeddings", "labels.json"}


def test_one_embedding_pass_serves_other_clusters(tmp_path, kmeans):
    """The embeddings are taken from the earlier run, which its record names."""
    disperse(tmp_path / "first", *kmeans)
    given = f"embeddings={tmp_path / 'first'}"
    facts = disperse(tmp_path / "second", *kmeans, given, "clusters=5", "kmeans.algorithm=balanced")
    assert not (tmp_path / "second" / "embeddings").exists()
    assert max(facts["sizes"]) == 18
    inputs = json.loads((tmp_path / "second" / "run.json").read_text())["inputs"]
    assert inputs["embeddings"]["run"] == str(tmp_path / "first")


def test_given_embeddings_describe_a_random_split_too(tmp_path, kmeans):
    disperse(tmp_path / "first", *kmeans)
    disperse(tmp_path / "second", *kmeans, f"embeddings={tmp_path / 'first'}", "method=random")
    report = json.loads((tmp_path / "second" / "report.json").read_text())
    assert all(cluster["nearest"] for cluster in report["cluster"])
    assert (tmp_path / "second" / "plots" / "clusters.png").is_file()


def test_released_label_files_stand_beside(tmp_path, rows, embedder):
    lines = [line for line in rows.read_text().splitlines() if '"messages": [{"role": "user"' in line]
    for name, part in (("a", lines[:30]), ("b", lines[30:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(part) + "\n")
    words = [f"data.sets.{name}.path={tmp_path / name}.jsonl" for name in "ab"]
    folder = tmp_path / "run"
    disperse(folder, "variant=released", "method=kmeans", "clusters=2", f"embedding.model={embedder / 'st'}", *words)
    files = [json.loads((folder / "st_fp16_output_cluster2" / f"{name}.json").read_text()) for name in "ab"]
    assert [len(labels) for labels in files] == [30, 58]
    assert files[0] + files[1] == json.loads((folder / "labels.json").read_text())


def test_own_labels(tmp_path, rows):
    labels = [number % 3 for number in range(88)]
    (tmp_path / "mine.json").write_text(json.dumps(labels))
    words = ["method=labels", f"labels={tmp_path / 'mine.json'}", "clusters=3", f"data.sets.chats.path={rows}"]
    assert disperse(tmp_path / "run", *words)["sizes"] == [30, 29, 29]


def test_a_dry_run_reads_the_rows_and_writes_nothing(tmp_path, kmeans, capsys):
    assert main(["disperse", *kmeans, f"output_dir={tmp_path / 'run'}", "--dry-run"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "88 rows in 3 clusters (method=kmeans), 0 held out, 2 that do not fit" in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_killed_run_is_resumed_to_the_same_bytes(tmp_path, kmeans):
    disperse(tmp_path / "whole", *kmeans, "embedding.shard_size=2", "embedding.batch_size=1")
    words = [*kmeans, "embedding.shard_size=2", "embedding.batch_size=1", f"output_dir={tmp_path / 'killed'}"]
    with subprocess.Popen([sys.executable, "-c", CODE, "disperse", *words], start_new_session=True) as process:
        deadline = time.monotonic() + 300
        while not list(tmp_path.glob("killed/embeddings/shard-*")) and time.monotonic() < deadline:
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
    assert not (tmp_path / "killed" / "labels.json").exists()
    disperse(tmp_path / "killed", *words[:-1])
    assert results(tmp_path / "killed") == results(tmp_path / "whole")
    assert json.loads((tmp_path / "killed" / "run.json").read_text())["resumptions"] == 1


@pytest.mark.distributed
def test_two_processes_make_the_dispersal_of_one(tmp_path, kmeans):
    disperse(tmp_path / "one", *kmeans)
    two = ["launch=ddp", "launch.processes=2", "launch.main_port=0", f"output_dir={tmp_path / 'two'}"]
    done = run_command([sys.executable, "-c", CODE, "disperse", *kmeans, *two])
    assert done.returncode == 0, done.stderr[-3000:]
    assert results(tmp_path / "two") == results(tmp_path / "one")
    assert json.loads((tmp_path / "two" / "run.json").read_text())["processes"] == 2


@pytest.fixture
def refused(tmp_path, capsys, monkeypatch):
    """Run a command line that must be refused and leave nothing; return its one line of error."""
    monkeypatch.chdir(tmp_path)

    def refused(*words: object) -> str:
        return refusal("dtm", main, ["disperse", *map(str, words), "output_dir=out"], capsys, untouched=tmp_path)

    return refused


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["method=kmean"], "unknown method 'kmean' (did you mean 'kmeans'?)"),
        (["variant=both"], "unknown variant 'both'"),
        (["clusters=0"], "clusters=0 must be at least 1"),
        (["clusters=91"], "clusters=91, but there are only 88 training rows; set a lower number"),
        (["seed=-1"], "seed=-1 must be from 0 to 4294967295"),
        (["nearest=0"], "nearest=0 must be at least 1"),
        (["data.eval_fraction=1"], "data.eval_fraction=1.0 must be at least 0 and below 1"),
        (["data.eval_fraction=-0.1"], "data.eval_fraction=-0.1 must be at least 0 and below 1"),
        (["data.eval_fraction=0.999"], "leaves none to train on"),
        (["data.system=keeps"], "unknown data.system 'keeps' (did you mean 'keep'?)"),
        (["data.system=keep", "variant=released"], "the release drops system texts"),
        (["data.on_error=raise"], "line 8: its first turns are assistant, user; [system,] user, assistant are needed"),
        (["data.sets.other.path=none.jsonl"], "data.sets.other.path=none.jsonl: no such file"),
        (["method=labels"], "method=labels and labels=FILE go together"),
        (["labels=x.json"], "method=labels and labels=FILE go together"),
        (["method=labels", "labels=x.json"], "labels=x.json: no such file"),
        (["kmeans.iterations=5"], "method=random_equal clusters nothing"),
        (["embedding.text=both"], "method=random_equal embeds nothing"),
        (["launch=fsdp"], "launch.strategy=fsdp"),
        (["resume=always"], "unknown resume 'always'"),
    ],
)  # fmt: skip
def test_settings(refused, rows, words, message):
    assert message in refused(f"data.sets.chats.path={rows}", *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["kmeans.algorithm=loyd"], "unknown kmeans.algorithm 'loyd' (did you mean 'lloyd'?)"),
        (["kmeans.backend=faiss"], "kmeans.backend has no meaning for kmeans.algorithm=lloyd"),
        (["kmeans.algorithm=released", "kmeans.restarts=2"], "kmeans.restarts has no meaning"),
        (["kmeans.spherical=true"], "it is read by released, faiss"),
        (["kmeans.points_per_cluster=9"], "kmeans.points_per_cluster has no meaning"),
        (["kmeans.iterations=0"], "kmeans.iterations=0 must be at least 1"),
        (["kmeans.restarts=0"], "kmeans.restarts=0 must be at least 1"),
        (["kmeans.seed=-1"], "kmeans.seed=-1 must be from 0"),
        (["embedding.text=answer"], "unknown embedding.text 'answer'"),
        (["embedding.dtype=int8"], "unknown embedding.dtype 'int8'"),
        (["embedding.batch_size=0"], "embedding.batch_size=0 must be at least 1"),
        (["embedding.shard_size=0"], "embedding.shard_size=0 must be at least 1"),
        (["embedding.model=nowhere"], "embedding.model=nowhere"),
        (["embeddings=nowhere"], "embeddings=nowhere: no embeddings there"),
        (["variant=released"], "rows.jsonl line 8: no output to embed; variant=paper leaves such rows out"),
    ],
)  # fmt: skip
def test_settings_of_kmeans(refused, kmeans, words, message):
    assert message in refused(*kmeans, *words)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("[0, 1", "not valid JSON"),
        ('{"0": 1}', "a JSON array of cluster ids is needed"),
        (json.dumps([0, 1]), "has 2 labels for 88 rows"),
        (json.dumps(["0"] * 88), 'label 0 is "0"'),
        (json.dumps([0] * 87 + [True]), "label 87 is true"),
        (json.dumps([0] * 87 + [-1]), "label 87 is -1"),
        (json.dumps([0] * 87 + [1.0]), "label 87 is 1.0"),
        (json.dumps([0, 1, 2] + [4] * 85), "label 3 is 4, but clusters=4 has the ids 0 to 3"),
        (json.dumps([0, 1] + [3] * 86), "no row is in cluster 2 of clusters=4"),
    ],
)
def test_labels_that_do_not_fit(refused, rows, tmp_path, labels, message):
    (tmp_path / "mine.json").write_text(labels)
    assert message in refused(f"data.sets.chats.path={rows}", "method=labels", "labels=mine.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file has no rows"),
        ('{"instruction": "q", "output": "  "}\n', "none of 1 rows is usable"),
        ("{\n{\n", "none of the 2 rows of data.sets"),
        ('{"words": "q"}\n', "columns words are those of no known source"),
    ],
)
def test_files_without_a_usable_row(refused, tmp_path, content, message):
    (tmp_path / "a.jsonl").write_text(content)
    assert message in refused("data.sets.a.path=a.jsonl")


def test_an_empty_response(refused, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"instruction": "q", "output": "a"}\n{"instruction": "q", "output": ""}\n')
    assert "a.jsonl line 2: the output is empty" in refused(
        "data.sets.a.path=a.jsonl", "clusters=1", "data.on_error=raise"
    )


def test_a_model_that_is_no_sentence_transformers_model(refused, kmeans, embedder, tmp_path):
    assert "no sentence-transformers model (modules.json is missing)" in refused(
        *kmeans, f"embedding.model={embedder / 'bert'}"
    )
    shutil.copytree(embedder / "st", tmp_path / "pickled")
    for path in (tmp_path / "pickled").rglob("*.safetensors"):
        path.rename(path.with_name("pytorch_model.bin"))
    assert "no weights in safetensors" in refused(*kmeans, "embedding.model=pickled")
    shutil.copytree(embedder / "st", tmp_path / "broken")
    (tmp_path / "broken" / "modules.json").write_text("[{]")
    assert "broken: cannot be loaded with sentence-transformers" in refused(*kmeans, "embedding.model=broken")


def test_embeddings_outlive_a_clustering_that_fails(tmp_path, kmeans, capsys):
    """Of equal responses there is one cluster; what was embedded serves a run with fewer."""
    same = tmp_path / "same.jsonl"
    same.write_text("".join(json.dumps({"instruction": str(n), "output": "one answer"}) + "\n" for n in range(9)))
    words = [f"data.sets.chats.path={same}" if word.startswith("data.sets") else word for word in kmeans]
    assert main(["disperse", *words, f"output_dir={tmp_path / 'run'}"]) == 1
    printed = capsys.readouterr().err
    assert "no row is in cluster 1, 2 of clusters=3; set a lower number of clusters; the embeddings" in printed
    assert not (tmp_path / "run" / "labels.json").exists()
    disperse(tmp_path / "again", *words, "clusters=1", f"embeddings={tmp_path / 'run'}")


def test_embeddings_of_other_rows(refused, kmeans, rows, tmp_path):
    disperse(tmp_path / "first", *kmeans)
    less = f"data.sets.chats={{path: {rows}, first: 40}}"
    words = [word for word in kmeans if not word.startswith("data.sets")]
    assert "these are embeddings of other texts" in refused(*words, less, "embeddings=first")
    assert "other parts of the rows (embedding.text) (response, not both)" in refused(
        *kmeans, "embedding.text=both", "embeddings=first"
    )


def test_changed_rows_do_not_continue_a_run(tmp_path, kmeans, rows, capsys):
    copy = tmp_path / "chats.jsonl"
    shutil.copy(rows, copy)
    words = [f"data.sets.chats.path={copy}" if word.startswith("data.sets") else word for word in kmeans]
    disperse(tmp_path / "run", *words)
    record = tmp_path / "run" / "run.json"
    write_signed(record, json.loads(record.read_text()) | {"status": "interrupted"})
    copy.write_text("".join(copy.read_text().splitlines(keepends=True)[:60]))
    assert main(["disperse", *words, f"output_dir={tmp_path / 'run'}"]) == 2
    assert "data 'chats' is not what it was when this run began" in capsys.readouterr().err
