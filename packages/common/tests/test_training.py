"""What a training comes to whatever its objective: the reference, adapters, how log-probs are computed, evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from toy.cli import main
from transformers import AutoModelForCausalLM

from reproalign.common.models.load import model_path
from reproalign.common.testing import logged

LORA = ["model.lora.enabled=true", "trainer.learning_rate=0.01"]


def run(folder: Path, *words: str) -> dict:
    quick = ["trainer.max_steps=3", "trainer.save_strategy=no"]
    assert main(["train", "experiment=smoke", *quick, *words, f"output_dir={folder}"]) == 0
    return json.loads((folder / "run.json").read_text())


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "plain"
    run(folder)
    return folder


@pytest.fixture(scope="module")
def adapted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "adapted"
    run(folder, *LORA)
    return folder


def same_metrics(left: Path, right: Path) -> None:
    found, expected = (json.loads((folder / "run.json").read_text())["metrics"] for folder in (left, right))
    timing = {name for name in expected if name.endswith(("_runtime", "_per_second"))}
    assert {k: found[k] for k in found.keys() - timing} == pytest.approx(
        {k: expected[k] for k in expected.keys() - timing}, abs=1e-4
    )


def test_the_record_says_what_went_in_and_what_came_out(plain):
    record = json.loads((plain / "run.json").read_text())
    assert (record["status"], record["recipe"], record["processes"]) == ("finished", "smoke", 1)
    assert record["pairs"] == {"train": 32, "evaluation": 8}
    assert record["fingerprints"]["data"].keys() == {"train", "evaluation"}
    assert record["fingerprints"]["weights"].keys() == {"policy", "model"}
    assert record["metrics"]["eval_loss"] > 0
    assert "2402.05749" in (plain / "model" / "README.md").read_text()


def test_a_reference_is_held_as_a_copy_or_as_cached_log_probs(tmp_path, plain):
    run(tmp_path / "cached", "reference.mode=cached")
    assert logged(tmp_path / "cached") == pytest.approx(logged(plain), abs=1e-5)
    same_metrics(tmp_path / "cached", plain)


def test_beside_adapters_the_reference_is_the_policy_without_them(tmp_path, adapted):
    """So rewards are exactly 0 at the start, and the weights under the adapters stay as they were."""
    run(tmp_path / "copy", *LORA, "reference.mode=copy")
    assert logged(adapted) == pytest.approx(logged(tmp_path / "copy"), abs=1e-5)
    margins = logged(adapted, "rewards/margins")
    assert margins[0] == pytest.approx(0, abs=1e-6)
    assert margins[-1] != 0
    start = AutoModelForCausalLM.from_pretrained(model_path("tiny:llama"))
    trained = PeftModel.from_pretrained(start, adapted / "model")
    assert any(value.any() for name, value in trained.state_dict().items() if "lora_B" in name)


def test_adapters_are_saved_alone_or_merged(tmp_path, adapted):
    run(tmp_path / "merged", *LORA, "model.lora.merge=true")
    same_metrics(tmp_path / "merged", adapted)  # merging does not touch the trained model
    start = AutoModelForCausalLM.from_pretrained(model_path("tiny:llama"))
    ids = torch.arange(6, 30)[None]
    with torch.no_grad():
        expected = PeftModel.from_pretrained(start, adapted / "model")(input_ids=ids).logits
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged" / "model")(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_chunks_and_plain_logits_train_alike(tmp_path, plain):
    """The chunk of the smoke recipe is chosen from the vocabulary's size."""
    for words in (["logprobs.chunk_size=7"], ["logprobs.implementation=plain"]):
        folder = tmp_path / words[0]
        run(folder, *words)
        assert logged(folder) == pytest.approx(logged(plain), abs=1e-5)


def test_evaluation_during_training_is_logged(tmp_path):
    run(tmp_path / "run", "trainer.eval_strategy=steps", "trainer.eval_steps=1")
    assert len(logged(tmp_path / "run", "eval_rewards/accuracies")) >= 3
