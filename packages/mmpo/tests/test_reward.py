"""Reward models: what training measured is what evaluation and scoring read, by ``reward.json``."""

from __future__ import annotations

import json
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reproalign.common.config.data import DataConfig, SetConfig
from reproalign.common.config.model import ModelConfig
from reproalign.common.data.load import load_evaluation
from reproalign.common.manifests import seal
from reproalign.common.reward.rules import NOTE, read_rules
from reproalign.common.reward.scorer import RewardScorer
from reproalign.mmpo.cli import main

TRAIN = [
    "reward",
    "experiment=smoke-reward",
    "trainer.max_steps=3",
    "trainer.save_strategy=no",
    "evaluate_before=false",
]
ROWS = 24


def metrics(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())["metrics"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """From words to the folder of the run that they started: one for all tests that ask for the same."""
    base = tmp_path_factory.mktemp("trained")

    @cache
    def folder_of(*words: str) -> Path:
        folder = base / str(len(list(base.iterdir())))
        assert main([*TRAIN, *words, f"data.max_eval_rows={ROWS}", f"output_dir={folder}"]) == 0
        return folder

    return folder_of


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["pool=first_pad", "variant=released", "text.special_tokens=released"],
        pytest.param(["text.max_length=48", "text.system_message=Be kind."], marks=pytest.mark.slow),
        pytest.param(["text.system_message=null", "model.chat_template=llama3"], marks=pytest.mark.slow),
    ],
)
def test_evaluation_and_scoring_read_as_the_training_did(tmp_path, trained, words):
    run = trained(*words)
    trained = metrics(run)["after"]
    evaluate = ["evaluate", f"model.name={run / 'model'}", "data=demo", f"data.max_eval_rows={ROWS}"]
    assert main([*evaluate, f"output_dir={tmp_path / 'evaluation'}"]) == 0
    assert metrics(tmp_path / "evaluation") == pytest.approx(trained, abs=1e-5)

    rules = read_rules(str(run / "model"), None)
    assert rules is not None
    scorer = RewardScorer(ModelConfig(name=str(run / "model")), rules, batch_size=3)
    data = DataConfig(sets={"demo": SetConfig(path="demo:pairs-eval")}, max_eval_rows=ROWS)
    records = load_evaluation(data, seed=0).train
    chosen, rejected = (
        np.array(scorer([row["prompt"] + row[side] for row in records])) for side in ("chosen", "rejected")
    )
    assert (chosen - rejected).mean() == pytest.approx(trained["margin"], abs=1e-5)
    assert (chosen - rejected).std() == pytest.approx(trained["margin_std"], abs=1e-5)
    assert (chosen > rejected).mean() == pytest.approx(trained["accuracy"])


def test_options_that_the_training_has_decided_are_named(tmp_path, trained, caplog):
    model = shutil.copytree(trained() / "model", tmp_path / "model")
    words = ["evaluate", f"model.name={model}", "data=demo", "data.max_eval_rows=4"]
    assert main([*words, "text.max_length=99", f"output_dir={tmp_path / 'told'}"]) == 0
    assert "text.max_length=99 is not used: the reward model reads as it was trained" in caplog.text
    caplog.clear()
    (model / NOTE).unlink()  # a model of which nothing is known is read by the options
    seal(model)
    assert main([*words, "text.max_length=256", f"output_dir={tmp_path / 'bare'}"]) == 0
    assert "is not used" not in caplog.text
