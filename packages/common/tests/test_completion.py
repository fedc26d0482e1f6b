"""What the shell is offered for a word that was begun."""

from __future__ import annotations

import pytest
from toy.cli import APP, main

from reproalign.common.command.completion import fitting


@pytest.mark.parametrize(
    ("before", "word", "expected"),
    [
        ("", "t", ["train "]),
        ("", "comp", ["completion "]),
        ("", "--v", ["--version "]),
        ("completion", "", ["bash ", "zsh "]),
        ("train", "exp", ["experiment="]),
        ("train", "experiment=sm", ["experiment=smoke "]),
        ("train", "trainer.learn", ["trainer.learning_rate="]),
        ("train", "trai", ["trainer."]),
        ("train", "data.on_error=", ["data.on_error=raise ", "data.on_error=skip "]),
        ("train", "model.lora.enabled=t", ["model.lora.enabled=true "]),
        ("train", "data.se", ["data.sets."]),
        ("train", "data.sets.own.pa", ["data.sets.own.path="]),
        ("train --dry-run experiment=smoke", "launch=zero1", ["launch=zero1 "]),
        ("train", "model.name=", []),
        ("train nonsense=1", "lo", []),
        ("nonsense", "", []),
        ("train", "config=", []),
    ],
)
def test_what_a_word_may_become(before, word, expected):
    assert fitting(APP, before.split(), word) == expected


def test_of_a_library_only_what_can_be_set_is_offered():
    offered = fitting(APP, ["train"], "trainer.")
    assert "trainer.max_steps=" in offered
    assert "trainer.output_dir=" not in offered


def test_the_shell_is_given_what_follows_the_last_equals_sign(capsys, monkeypatch):
    assert main(["completion", "bash"]) == 0
    assert capsys.readouterr().out == "complete -o nospace -o default -C 'toy completion words' toy\n"
    monkeypatch.setenv("COMP_LINE", "toy train data.on_error=s and what follows the cursor")
    monkeypatch.setenv("COMP_POINT", str(len("toy train data.on_error=s")))
    assert main(["completion", "words", "toy", "s", "="]) == 0
    assert capsys.readouterr().out == "skip \n"
    assert main(["completion", "fish"]) == 2
    assert capsys.readouterr().err == "toy: error: unknown shell 'fish'; choose one of: bash, zsh\n"
