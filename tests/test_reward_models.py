"""A reward model of one paper is read by the commands of the other, and by the same rule."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from reproalign.common.config.data import DataConfig, SetConfig
from reproalign.common.config.model import ModelConfig
from reproalign.common.data.load import load_evaluation
from reproalign.common.manifests import seal
from reproalign.common.reward.rules import read_rules
from reproalign.common.reward.scorer import RewardScorer
from reproalign.mmpo.cli import main as mmpo
from reproalign.more.cli import main as more_rm

QUICK = ["trainer.max_steps=2", "trainer.save_strategy=no", "evaluate_before=false"]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("models")
    reward = ["reward", "experiment=smoke-reward", "text.max_length=64", "data.max_eval_rows=8"]
    assert mmpo([*reward, *QUICK, f"output_dir={folder / 'mmpo'}"]) == 0
    words = ["train", "experiment=smoke", *QUICK, "trainer.eval_strategy=no"]
    assert more_rm([*words, f"output_dir={folder / 'more'}"]) == 0
    return [folder / "mmpo" / "model", folder / "more" / "model"]


def test_both_commands_give_a_response_the_same_reward(tmp_path, models):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "hello"}\n{"prompt": "two plus two"}\n')
    sampling = ["policy.name=tiny:llama", f"prompts={prompts}", "n=3", "max_new_tokens=5"]
    for model in models:
        name = model.parent.name
        best = tmp_path / f"best-{name}"
        assert mmpo(["best-of-n", *sampling, f"reward.name={model}", f"gold={models[0]}", f"output_dir={best}"]) == 0
        words = [f"responses={best / 'candidates.jsonl'}", f"model.name={model}"]
        assert more_rm(["score", *words, f"output_dir={tmp_path / f'scored-{name}'}"]) == 0
        found, expected = lines(best / "scored.jsonl"), lines(tmp_path / f"scored-{name}" / "scored.jsonl")
        for one, other in zip(found, expected, strict=True):
            assert one["prompt"] == other["prompt"]
            assert one["responses"] == other["responses"]
            assert one["scores"] == pytest.approx(other["scores"], abs=1e-5)
        assert [row["reward"] for row in lines(best / "selected.jsonl")] == [max(row["scores"]) for row in found]


def test_training_goes_on_from_a_model_of_the_other_paper_and_reads_as_it_did(tmp_path, models):
    words = ["train", "experiment=smoke", *QUICK, "trainer.eval_strategy=no", f"model.name={models[0]}"]
    assert more_rm([*words, f"output_dir={tmp_path / 'on'}"]) == 0
    before, after = (json.loads((folder / "reward.json").read_text()) for folder in (models[0], tmp_path / "on/model"))
    assert before == after
    assert (after["special_tokens"], after["pooling"], after["max_length"]) == ("own_once", "last_not_pad", 64)


def test_pairs_are_evaluated_as_the_other_paper_s_model_reads_them(tmp_path, models):
    model = shutil.copytree(models[1], tmp_path / "model")
    (model / "chat_template.jinja").unlink()  # transcripts need none
    seal(model)
    words = [f"model.name={model}", "data=demo", "data.max_eval_rows=8", f"output_dir={tmp_path / 'evaluation'}"]
    assert mmpo(["evaluate", *words]) == 0
    found = json.loads((tmp_path / "evaluation" / "run.json").read_text())["metrics"]
    rules = read_rules(str(model), None)
    assert rules is not None
    scorer = RewardScorer(ModelConfig(name=str(model)), rules, batch_size=4)
    data = DataConfig(sets={"demo": SetConfig(path="demo:pairs-eval")}, max_eval_rows=8)
    records = load_evaluation(data, seed=0).train
    chosen, rejected = (scorer([row["prompt"] + row[side] for row in records]) for side in ("chosen", "rejected"))
    assert found["margin"] == pytest.approx(fmean(chosen) - fmean(rejected), abs=1e-5)
