"""What a paper's command tells: its help, its recipes, its configuration; shown on the toy paper."""

from __future__ import annotations

import json
import re
import sys

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from toy.cli import APP, TRAIN, main

from reproalign.common.command.app import App, run
from reproalign.common.command.recipes import read_headers
from reproalign.common.errors import UserError
from reproalign.common.mappings import flatten
from reproalign.common.options.compose import compose
from reproalign.common.options.keys import known_keys
from reproalign.common.options.load import load_object
from reproalign.common.options.words import as_word
from reproalign.common.testing import composed, refusal
from reproalign.common.verbs import REJECTION_SAMPLING


def plain(*words: str) -> dict:
    """Compose words without a recipe."""
    words = ("model.name=tiny:llama", "output_dir=a b", *words)
    return compose("toy", "train", TRAIN.schema, words, foreign=False).config


@pytest.fixture
def prints(capsys):
    """Run a command line that must succeed; return what it prints."""

    def run(*words: str) -> str:
        assert main(words) == 0
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"]], ids=" ".join)
def test_the_help_names_every_verb_recipe_and_flag(prints, words):
    help_words = prints(*words).split()
    assert {"train", "recipes", *read_headers(APP.package)} <= set(help_words)
    assert {"--help", "--version", "--cfg", "--dry-run", "--traceback"} <= set(help_words)


def test_the_help_of_a_verb_lists_every_key_unbroken(prints):
    keys = {key.replace("trainer", "trainer.*") for key in known_keys(load_object(TRAIN.schema))}
    assert keys <= set(prints("train", "--help").split())


def test_the_words_of_the_call_count_not_those_of_the_process(prints, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pytest", "-h"])
    assert yaml.safe_load(prints("train", "experiment=smoke", "--cfg"))["seed"] == 42
    monkeypatch.setattr(sys, "argv", ["pytest"])
    assert "Usage: toy train" in prints("train", "-h")


def test_without_words_the_help_is_shown_and_the_exit_code_is_that_of_a_mistake(capsys):
    assert main([]) == 2
    assert "Usage: toy VERB" in capsys.readouterr().out


def test_the_version(prints):
    name, version = prints("--version").split(maxsplit=1)
    assert name == "toy"
    assert version.strip()


def test_recipes_lists_every_recipe(prints, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert set(read_headers(APP.package)) <= set(prints("recipes").replace("│", " ").split())


def test_the_printed_configuration_composes_to_itself(prints):
    words = [
        "experiment=smoke",
        "output_dir='a b, {c}: \"d\"'",
        "data.sets.a={name: org/a-b.c, fraction: 0.5}",
        "trainer.report_to=[none]",
        "launch.slurm_options={time: '24:00:00'}",
    ]
    printed = yaml.safe_load(prints("train", *words, "--cfg"))
    assert printed == composed(APP, *words)
    again = [f"{key}={json.dumps(value)}" for key, value in flatten(printed).items()]
    assert composed(APP, *again, verb="train") == printed


def test_a_dry_run_writes_nothing_and_says_what_a_training_comes_to(prints, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    printed = prints("train", "experiment=smoke", "--dry-run")
    assert printed.startswith("toy train")
    for line in (
        "device: +(cpu|cuda) .single.",
        "precision: +float32 weights, no autocast",
        r"rows: +32, [\d,]+ tokens; 8 held out",
        "global batch: +4 .4 per device x 1 process x 1 accumulated.",
        "reference: +a frozen second model",
        "resuming: +nothing: from the first step",
    ):
        assert re.search(f"^{line}$", printed, re.MULTILINE)
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model.name=./none", "output_dir=a"], "model.name=./none: no such folder"),
        (["model.tokenizer=./none", "output_dir=a"], "model.tokenizer=./none: no such folder"),
        (["sweep.model.name=[tiny:llama,./none]", "output_dir=a"], "name-._none: model.name=./none: no such folder"),
        (["output_dir=taken"], "output_dir=taken holds files that are not a run's"),
        (["output_dir=taken", "sweep.n=[1,2]"], "output_dir=taken holds files that are not a run's"),
    ],
)
def test_a_dry_run_without_a_preview_refuses_what_the_run_would(tmp_path, capsys, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/notes.txt").write_text("mine")
    app = App("toy", "reproalign.common", "reproalign-common", "a toy", REJECTION_SAMPLING)
    named = [] if any("model.name" in word for word in words) else ["model.name=tiny:llama"]
    typed = ["sample", "prompts=demo:pairs-eval", *named, *words, "--dry-run"]
    assert said in refusal("toy", lambda argv: run(app, argv), typed, capsys, untouched=tmp_path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed=${nothing}"], "seed refers to the key nothing, which there is none of"),
        (["~seed=42"], "'~seed=42' is not of the form key=value"),
        (["data.sets=3"], "data.sets is a mapping; write data.sets.NAME.KEY=VALUE"),
    ],
)
def test_hydra_syntax_that_cannot_work_is_a_users_mistake(words, message):
    with pytest.raises(UserError, match=re.escape(message)):
        composed(APP, "experiment=smoke", *words)


def test_a_mixture_can_be_given_by_name_or_as_a_whole():
    for words in (
        ["data.sets={a: {fraction: 0.5}, b: {first: 1}}"],
        ["data.sets.a.fraction=0.5", "data.sets.b.first=1"],
    ):
        sets = plain(*words)["data"]["sets"]
        assert (sets["a"]["fraction"], sets["b"]["first"], len(sets)) == (0.5, 1, 2)


@settings(max_examples=40)
@example("données/paires.jsonl")
@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.lists(st.text())))
def test_any_plain_value_can_be_written_as_a_word(value):
    assert plain(as_word("trainer.x", value))["trainer"]["x"] == value


@pytest.mark.parametrize(
    "path", ["données dir/mes paires.jsonl", "données.jsonl", "a b.jsonl", "it's.jsonl", "(1).jsonl", "x,y.jsonl"]
)
def test_a_path_needs_no_second_quotes(path):
    found = plain(f"data.sets.own.path={path}")
    assert (found["data"]["sets"]["own"]["path"], found["output_dir"]) == (path, "a b")
