"""Every mistake in ``dtm train`` gives one line that says what, where and what to do, and leaves nothing behind."""

from __future__ import annotations

import json

import pytest

from reproalign.common.testing import refusal
from reproalign.dtm.cli import main

ROW = {"instruction": "Name a moon.", "input": "", "output": "Europa."}


@pytest.fixture
def fails(tmp_path, capsys, monkeypatch):
    """Run a command line that must fail; return its one line of error."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "disperse"
    folder.mkdir()
    (folder / "rows.jsonl").write_text((json.dumps(ROW) + "\n") * 6)
    (folder / "labels.json").write_text("[0, 1, 0, 3, 1, 0]")

    def run(*words: str) -> str:
        common = ["train", "model.name=tiny:llama", "output_dir=out", "trainer.max_steps=1"]
        return refusal("dtm", main, [*common, *words], capsys, untouched=tmp_path)

    return run


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no rows are given; set dispersal=FOLDER or rows=[FILE]"),
        (["dispersal=nowhere"], "dispersal=nowhere: there is no rows.jsonl"),
        (["dispersal=disperse", "rows=[a]"], "dispersal has rows and labels of its own"),
        (["rows=[disperse/rows.jsonl]", "cluster=0"], "cluster=0 needs labels"),
        (["rows=[disperse/rows.jsonl]", "labels=[a,b]"], "labels: 2 files for 1 file of rows"),
        (["rows=disperse/rows.jsonl"], "rows is a list; write rows=[A] or rows=[A,B]"),
        (["rows=[none.jsonl]"], "rows=none.jsonl: no such file"),
        (["dispersal=disperse", "cluster=2"], "cluster=2: no row has [2]; there are 0, 1, 3"),
        (["dispersal=disperse", "cluster=x"], "cluster=x: give an id"),
        (["dispersal=disperse", "data_ratio=0"], "data_ratio=0.0 must be above 0 and at most 1"),
        (["dispersal=disperse", "data_ratio=1.2"], "data_ratio=1.2 must be above 0 and at most 1"),
        (["dispersal=disperse", "data_ratio=0.1"], "no row is left to train on"),
        (["dispersal=disperse", "tokens.max_length=20"], "none of the 6 selected rows has a token to train on"),
        (["dispersal=disperse", "seed=-1"], "seed=-1 must be from 0 to 4294967295"),
        (["dispersal=disperse", "init_seed=4294967296"], "init_seed=4294967296 must be from 0 to 4294967295"),
        (["dispersal=disperse", "variant=both"], "unknown variant 'both'"),
        (["dispersal=disperse", "normalisation=mean"], "unknown normalisation 'mean'"),
        (["dispersal=disperse", "regularizer.name=l2"], "needs regularizer.weight, its λ, which is not published"),
        (
            ["dispersal=disperse", "regularizer.name=ewc", "regularizer.weight=1", "regularizer.fisher=no.safetensors"],
            "no.safetensors",
        ),
        (["dispersal=disperse", "replay.path=none.jsonl"], "replay.path=none.jsonl: no such file"),
        (["dispersal=disperse", "replay.path=disperse/rows.jsonl"], "no text in column 'text'; set replay.column"),
        (
            ["dispersal=disperse", "replay.path=disperse/rows.jsonl", "replay.column=output", "replay.ratio=2"],
            "6 texts",
        ),
        (["dispersal=disperse", "filter.column=score"], "filter.column=score is None; a number is needed"),
        (["dispersal=disperse", "filter.scores=[disperse/labels.json]", "filter.above=9"], "6 are filtered"),
        (["dispersal=disperse", "filter.above=3"], "filter.above has no meaning without scores"),
        (["dispersal=disperse", "replay.column=x"], "without replay.path or replay.name nothing is mixed in"),
        (["dispersal=disperse", "replay.path=x", "replay.split=test"], "are of a Hub data set"),
        (["dispersal=disperse", "filter.scores=[none.json]"], "filter.scores: none.json: cannot be read"),
        (["dispersal=disperse", "trainer.eval_strategy=epoch"], "needs held-out rows"),
        (["dispersal=disperse", "model.lora.target_modules=[none]"], "model.lora does not fit"),
        (["dispersal=disperse", "model.chat_template=chatml"], "the rows are put in the Alpaca prompt"),
        (["dispersal=disperse", "model.dtype=float16", "model.lora.enabled=false"], "cannot be trained itself"),
        (["dispersal=disperse", "clusters=all", "cluster=1"], "cluster trains one model, clusters one on each"),
        (["dispersal=disperse", "clusters=2"], "clusters=2: no row has [2]; there are 0, 1, 3"),
        (["dispersal=disperse", "clusters=0+0"], "names a cluster twice"),
        (["rows=[disperse/rows.jsonl]", "clusters=all"], "clusters=all needs labels"),
        (["dispersal=disperse", "clusters=all", "at_once=0"], "at_once=0 must be at least 1"),
        (["dispersal=disperse", "clusters=all", "data_ratio=2"], "data_ratio=2.0 must be above 0 and at most 1"),
        (["dispersal=disperse", "clusters=all", "variations=[{seed:1}]"], "give either clusters=all"),
        (["dispersal=disperse", "variations=[{sed:1}]"], "variations[0]: unknown key 'sed' (did you mean 'seed'?)"),
        (["dispersal=disperse", "variations=[{cluster:1}]"], "variations[0]: cluster is not an option of the single"),
        (["dispersal=disperse", "clusters=all", "launch.slurm=true"], "launch=slurm prints the script of one run"),
    ],
)
def test_settings(fails, words, message):
    assert message in fails(*words)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("[0, 1]", "has 2 labels for 6 rows; it belongs to other rows"),
        ('["0", "1", "0", "1", "0", "1"]', 'label 0 is "0"; cluster ids are whole numbers from 0 on'),
        ("nonsense", "not valid JSON"),
    ],
)
@pytest.mark.parametrize("words", [[], ["cluster=0"], ["clusters=all"]])
def test_label_files(fails, tmp_path, labels, message, words):
    (tmp_path / "disperse" / "labels.json").write_text(labels)
    assert message in fails("dispersal=disperse", *words)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"sha256": 1}'])
def test_facts_of_a_dispersal_that_are_none(fails, tmp_path, content):
    (tmp_path / "disperse" / "dispersal.json").write_text(content)
    assert "not what 'dtm disperse' wrote" in fails("dispersal=disperse")


def test_rows_that_changed_since_they_were_dispersed(fails, tmp_path):
    facts = {"sha256": {"rows.jsonl": "0" * 64}}
    (tmp_path / "disperse" / "dispersal.json").write_text(json.dumps(facts))
    assert "rows.jsonl was changed since it was written; disperse again" in fails("dispersal=disperse")
