"""``more-rm train`` end to end on tiny models: methods, variants, records, resumption, what is saved."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean, pstdev

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from reproalign.common.config.data import DataConfig, SetConfig
from reproalign.common.config.model import RewardModelConfig
from reproalign.common.data.load import load_evaluation
from reproalign.common.models.tiny import save_tiny
from reproalign.common.records import fingerprint_folder
from reproalign.common.reward.rules import scoring_rules
from reproalign.common.reward.scorer import RewardScorer
from reproalign.more.balanced import MoreTrainer
from reproalign.more.cli import main

STEPS = 6
WORDS = ["train", "experiment=smoke", f"trainer.max_steps={STEPS}", "trainer.save_steps=2", "trainer.eval_strategy=no"]
DIALOGUE = "\n\nHuman: Name a moon.\n\nAssistant: Europa."


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def record(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def columns(folder: Path, prefix: str) -> list[dict[str, float]]:
    """Per logged step the metrics ``prefix/<domain>``."""
    found = [{k.removeprefix(prefix): v for k, v in row.items() if k.startswith(prefix)} for row in rows(folder)]
    return [values for values in found if values]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "more"
    assert main([*WORDS, f"output_dir={folder}"]) == 0
    return folder


def test_a_run_logs_weights_and_records_what_it_found(trained: Path) -> None:
    weights = columns(trained, "lambda/")
    assert len(weights) == STEPS
    for step in weights:
        assert set(step) == {"whole", "half", "quarter"}
        assert sum(step.values()) == pytest.approx(1, abs=1e-6)
    assert weights[0] != weights[-1]
    assert all(value > 0 for step in columns(trained, "grad_norm/") for value in step.values())
    metrics = record(trained)["metrics"]
    assert set(metrics["domains"]) == {"whole", "half", "quarter"}
    assert metrics["domains"]["half"]["pairs"] == 40
    assert {entry["domain"] for entry in record(trained)["domains"]} == {"whole", "half", "quarter"}
    for name in ("reliability", "differences", "rewards", "domains"):
        assert (trained / "plots" / f"{name}.png").stat().st_size > 10_000
    assert json.loads((trained / "final_eval_results.json").read_text()) == metrics


def test_the_saved_model_is_read_by_transformers(trained: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(trained / "model")
    tokenizer = AutoTokenizer.from_pretrained(trained / "model")
    ids = tokenizer(DIALOGUE, return_tensors="pt")["input_ids"]
    with torch.no_grad():  # pooling `last` reads the token before EOS
        expected = model(torch.cat([torch.tensor([[tokenizer.bos_token_id]]), ids], 1)).logits.item()
    config = RewardModelConfig(name=str(trained / "model"))
    scorer = RewardScorer(config, scoring_rules(config, {}), batch_size=2)
    has_bos = scorer.reader.special.bos is not None
    with torch.no_grad():
        plain = model(ids).logits.item()
    found = scorer([DIALOGUE, DIALOGUE + " Or Titan.", DIALOGUE])
    assert found[0] == pytest.approx(expected if has_bos else plain, abs=1e-5)
    assert found[0] == pytest.approx(found[2], abs=1e-6)
    assert found[0] != pytest.approx(found[1], abs=1e-4)


def test_stopped_in_the_middle_and_resumed_gives_the_same_bits(tmp_path, trained, monkeypatch) -> None:
    """The momentum is part of the checkpoint."""
    folder = tmp_path / "stopped"
    original = MoreTrainer.training_step

    def dying(self, *args, **kwargs):
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(MoreTrainer, "training_step", dying)
        assert main([*WORDS, f"output_dir={folder}"]) == 130
    assert (folder / "checkpoint-2" / "balance-0.safetensors").is_file()
    assert main([*WORDS, f"output_dir={folder}"]) == 0
    assert record(folder)["resumed_from"] == "checkpoint-2"
    assert fingerprint_folder(folder / "model") == fingerprint_folder(trained / "model")
    assert record(folder)["metrics"] == record(trained)["metrics"]


def test_uniform_weights_are_the_plain_loss(tmp_path) -> None:
    """MORE with equal weights on groups is MultiTask on the same groups: one batch, one loss."""
    words = [*WORDS, "trainer.max_steps=1", "trainer.gradient_accumulation_steps=1", "weights.rule=uniform"]
    assert main([*words, f"output_dir={tmp_path / 'uniform'}"]) == 0
    first = rows(tmp_path / "uniform")[0]
    assert first["loss"] == pytest.approx(sum(first[f"loss/{name}"] for name in ("whole", "half", "quarter")) / 3)


FIXED = ["weights.rule=fixed", "weights.fixed={whole: 1, half: 1, quarter: 2}"]


@pytest.mark.parametrize(
    "words",
    [
        ["variant=released", "data.resampling_size=80"],
        ["model.lora.enabled=true", "model.lora.merge=true", "model.pooling=eos", "evaluate_before=true"],
        *(
            pytest.param(others, marks=pytest.mark.slow)
            for others in [
                ["method=multitask", "data.train_domains=[half]", "trainer.per_device_train_batch_size=6"],
                ["model.pooling=max", "text.padding_side=left", "weights.normalize=loss"],
                ["model.lora.enabled=true", "model.pooling=average", "text.layout=chat"],
                [*FIXED, "trainer.gradient_checkpointing=true"],
                ["model.name=tiny:gpt_neox", "trainer.bf16=true", "data.train_domains=[half]"],
                ["model.name=tiny:gemma", "data.resampling=false", "trainer.per_device_train_batch_size=3"],
            ]
        ),
    ],
    ids=lambda words: " ".join(words),
)
def test_every_way_runs_and_its_model_scores(tmp_path, words: list[str]) -> None:
    folder = tmp_path / "run"
    assert main([*WORDS, "trainer.max_steps=2", "trainer.save_strategy=no", *words, f"output_dir={folder}"]) == 0
    config = RewardModelConfig(name=str(folder / "model"), chat_template="chatml")
    rewards = RewardScorer(config, scoring_rules(config, {"variant": "paper"}), batch_size=1)([DIALOGUE])
    assert all(abs(reward) < 100 for reward in rewards)
    if "data.train_domains=[half]" in words:
        assert set(record(folder)["metrics"]["domains"]) == {"whole", "half", "quarter"}
        assert all(set(step) == {"half"} for step in columns(folder, "loss/"))


def test_weights_that_are_stored_in_16_bits_are_trained_in_32(tmp_path) -> None:
    """As Pythia's and LLaMA-2's are; Adam's ε is 0 in float16, and a step of 1e-6 is lost in bfloat16."""
    model = AutoModelForCausalLM.from_pretrained(save_tiny(tmp_path / "half"), dtype=torch.float16)
    model.save_pretrained(tmp_path / "half")
    words = ["data=demo", f"model.name={tmp_path / 'half'}", "trainer.max_steps=3", "trainer.learning_rate=1e-6"]
    assert main(["train", *words, "trainer.save_strategy=no", f"output_dir={tmp_path / 'run'}"]) == 0
    weights = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    moved = [(weights[name] != start).float().mean() for name, start in model.state_dict().items() if "proj" in name]
    assert min(moved) > 0.5


def test_seeds_give_other_heads(tmp_path, trained) -> None:
    """And equal seeds the same: see the run that was stopped."""
    words = [*WORDS, "trainer.learning_rate=0", "trainer.max_steps=1", "trainer.save_strategy=no", "seed=2"]
    assert main([*words, f"output_dir={tmp_path / 'other'}"]) == 0
    one, other = (load_file(folder / "model" / "model.safetensors") for folder in (trained, tmp_path / "other"))
    assert (one["score.weight"] - other["score.weight"]).abs().max() > 0.02  # six steps of 1e-3 do not go so far


@pytest.mark.usefixtures("pictures")
def test_a_run_can_be_evaluated_and_plotted(tmp_path, trained, capsys) -> None:
    words = [
        "data=demo",
        f"model.name={trained / 'model'}",
        f"output_dir={tmp_path / 'evaluation'}",
        "temperature=true",
    ]
    assert main(["evaluate", *words]) == 0
    found, expected = record(tmp_path / "evaluation")["metrics"], record(trained)["metrics"]
    assert found["mean"]["accuracy"] == pytest.approx(expected["mean"]["accuracy"])
    assert found["mean"]["loss"] == pytest.approx(expected["mean"]["loss"], abs=1e-6)
    assert found["temperature"]["shared"]["whole"]["temperature"] > 0
    assert main(["plot", str(trained), str(tmp_path / "evaluation"), "--output", str(tmp_path / "figure.png")]) == 0
    assert (tmp_path / "figure.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    "odd",
    [
        ["variant=released", "data.resampling_size=80", "text.max_length=48", "model.pooling=average"],
        pytest.param(
            ["text.layout=chat", "text.padding_side=left", "model.pooling=max", "text.truncation_side=right"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_model_is_read_as_it_was_trained(tmp_path, odd) -> None:
    """``reward.json`` has what changes a reward: variant, lengths, pooling, layout."""
    folder = tmp_path / "run"
    assert main([*WORDS, "trainer.max_steps=1", "trainer.save_strategy=no", *odd, f"output_dir={folder}"]) == 0
    words = ["data=demo", f"model.name={folder / 'model'}", f"output_dir={tmp_path / 'evaluation'}"]
    assert main(["evaluate", *words]) == 0
    expected, found = (record(run)["metrics"]["mean"] for run in (folder, tmp_path / "evaluation"))
    assert found["loss"] == pytest.approx(expected["loss"], abs=1e-6)
    config = RewardModelConfig(name=str(folder / "model"))
    data = DataConfig(sets={"demo": SetConfig(path="demo:pairs-eval")})
    records = load_evaluation(data, seed=0).train
    dialogues = [row["prompt"] + row[side] for row in records for side in ("chosen", "rejected")]
    rewards = RewardScorer(config, scoring_rules(config, {}), batch_size=5)(dialogues)
    whole = record(folder)["metrics"]["domains"]["whole"]
    assert fmean(rewards) == pytest.approx(whole["reward_mean"], abs=1e-5)
    assert pstdev(rewards) == pytest.approx(whole["reward_std"], abs=1e-5)
