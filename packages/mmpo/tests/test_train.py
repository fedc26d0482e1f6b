"""Every verb end to end on tiny models, and what is equivalent gives equal numbers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from reproalign.common.cli import main as reproalign
from reproalign.common.models.load import model_path
from reproalign.common.signing import write_signed
from reproalign.common.testing import logged
from reproalign.mmpo.cli import main

QUICK = ["trainer.max_steps=3", "evaluate_before=false", "data.max_eval_rows=24"]


def run(folder: Path, *words: str, verb: str = "train", recipe: str = "smoke") -> dict:
    assert main([verb, f"experiment={recipe}", *words, f"output_dir={folder}"]) == 0
    return json.loads((folder / "run.json").read_text())


def test_reward_models_are_plain_sequence_classifiers_and_their_adapters_saved_alone_or_merged(tmp_path):
    words = [*QUICK, "model.lora.enabled=true", "trainer.learning_rate=0.01", "data.max_eval_rows=8"]
    alone = run(tmp_path / "alone", *words, verb="reward", recipe="smoke-reward")
    merged = run(tmp_path / "merged", *words, "model.lora.merge=true", verb="reward", recipe="smoke-reward")
    assert merged["metrics"]["after"] == alone["metrics"]["after"]  # merging does not touch the trained model
    start = AutoModelForSequenceClassification.from_pretrained(model_path("tiny:llama"), num_labels=1)
    adapted = PeftModel.from_pretrained(start, tmp_path / "alone" / "model")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged" / "model")
    assert plain.num_labels == 1
    ids = torch.arange(6, 30)[None]
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, adapted(input_ids=ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["loss=hinge"], marks=pytest.mark.slow),
        ["loss=ipo", "loss.average_log_prob=true"],
        ["loss=kto_pair"],
    ],
)
@pytest.mark.filterwarnings("ignore:loss=:UserWarning")
def test_other_losses_run(tmp_path, words):
    run(tmp_path / "run", *QUICK, *words, "loss.soft=true", "trainer.train_sampling_strategy=group_by_length")


def test_first_pad_pooling_and_released_tokens_run(tmp_path):
    words = ["pool=first_pad", "variant=released", "text.special_tokens=released", "text.overlong=drop"]
    run(tmp_path / "run", *QUICK, *words, verb="reward", recipe="smoke-reward")


@pytest.mark.parametrize(("verb", "recipe"), [("train", "smoke"), ("reward", "smoke-reward")])
def test_a_released_run_steps_as_the_release_counts(tmp_path, verb, recipe):
    """22 rows are 6 micro-batches of 4: 1 step of 4 an epoch, and left-overs go on; current transformers make 2."""
    words = ["trainer.max_steps=-1", "trainer.num_train_epochs=3", "data.max_rows=22", "data.max_eval_rows=8"]
    words += ["trainer.gradient_accumulation_steps=4", "trainer.per_device_train_batch_size=4"]
    words += ["evaluate_before=false", "trainer.save_strategy=epoch", "trainer.save_total_limit=9", "variant=released"]
    record = run(tmp_path / "run", *words, verb=verb, recipe=recipe)
    assert record["steps"] == {"per_epoch": 1, "total": 3}
    assert len(logged(tmp_path / "run")) == 3
    checkpoints = sorted((tmp_path / "run").glob("checkpoint-*"))
    assert [folder.name for folder in checkpoints] == ["checkpoint-1", "checkpoint-2", "checkpoint-3"]
    assert all((folder / "reward.json").is_file() == (verb == "reward") for folder in checkpoints)


def test_an_additive_margin_replaces_the_soft_targets(tmp_path):
    words = [*QUICK, "data.max_eval_rows=8", "pad_to_multiple_of=8"]
    run(tmp_path / "soft", *words, verb="reward", recipe="smoke-reward")
    run(tmp_path / "margin", *words, "additive_margin=true", verb="reward", recipe="smoke-reward")
    assert logged(tmp_path / "margin")[0] > logged(tmp_path / "soft")[0] + 1  # -log sigma(0 - m) is about m


def test_sft_rows_are_rendered_packed_and_counted_as_released(tmp_path):
    words = ["trainer.max_steps=-1", "trainer.num_train_epochs=2", "trainer.packing=true", "text.max_length=64"]
    words += ["trainer.packing_strategy=wrapped", "variant=released", "rows.shuffle_seed=42", "data.max_rows=40"]
    record = run(tmp_path / "run", *words, "trainer.gradient_accumulation_steps=3", verb="sft", recipe="smoke-sft")
    assert record["steps"]["total"] == 2 * record["steps"]["per_epoch"] == len(logged(tmp_path / "run"))


def test_sft_trains_and_measures(tmp_path):
    record = run(tmp_path / "run", "trainer.max_steps=3", verb="sft", recipe="smoke-sft")
    assert record["metrics"]["eval_loss"] > 0
    AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")


@pytest.fixture(scope="module")
def reward(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "reward"
    run(folder, *QUICK, verb="reward", recipe="smoke-reward")
    return folder


def test_policies_and_reward_models_are_evaluated(tmp_path, reward):
    run(tmp_path / "policy", *QUICK)
    bench = tmp_path / "bench.jsonl"
    rows = [
        {"prompt": "Name a moon.", "chosen": "Europa.", "rejected": "A fork.", "subset": "alpacaeval-easy"},
        {"prompt": "Add 2 and 2.", "chosen": "4", "rejected": "5", "subset": "math-prm"},
        {"prompt": "Fix a leak?", "chosen": "New washer.", "rejected": "No.", "subset": "shp"},
    ]
    bench.write_text("".join(json.dumps(row) + "\n" for row in rows))
    models = {"policy": tmp_path / "policy", "reward": reward}
    free = ["reference_free=avg"]
    for kind, more in (("policy", ["reference.model=tiny:llama"]), ("reward", []), ("policy", free)):
        folder = tmp_path / f"{kind}-evaluation{'-free' if more == free else ''}"
        words = [f"model.name={models[kind] / 'model'}", "data=demo", "data.max_eval_rows=8", f"rewardbench={bench}"]
        assert main(["evaluate", *words, *more, f"output_dir={folder}"]) == 0
        record = json.loads((folder / "run.json").read_text())
        metrics = record["metrics"]
        assert record["fingerprints"]["weights"].keys() == {kind, *(word.partition(".")[0] for word in more[:1])} - {
            "reference_free=avg"
        }
        assert record["fingerprints"]["data"]["rewardbench"]["rows"] == 3
        assert 0 <= metrics["accuracy"] <= 1
        assert metrics["rewardbench"]["subsets"].keys() == {"alpacaeval-easy", "math-prm", "shp"}
        assert metrics["rewardbench"]["prior_sets"] == metrics["rewardbench"]["subsets"]["shp"]
        assert (folder / "plots" / "reliability.png").is_file()


def test_best_of_n_goes_on_where_it_stopped(tmp_path, reward):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "hello"}\n{"prompt": [{"role": "user", "content": "two plus two"}]}\n')
    words = [f"prompts={prompts}", "policy.name=tiny:llama", f"reward.name={reward / 'model'}"]
    words += ["n=3", "batch_size=2", "max_new_tokens=5"]
    assert main(["best-of-n", *words, f"output_dir={tmp_path / 'whole'}"]) == 0
    whole = (tmp_path / "whole" / "candidates.jsonl").read_text()
    # A run that was stopped after the first prompt.
    record = json.loads((tmp_path / "whole" / "run.json").read_text())
    part = tmp_path / "part"
    part.mkdir()
    (part / "candidates.jsonl").write_text(whole.splitlines(keepends=True)[0])
    record = {**record, "status": "interrupted", "config": {**record["config"], "output_dir": str(part)}}
    write_signed(part / "run.json", record)
    assert main(["best-of-n", *words, f"output_dir={part}"]) == 0
    assert (part / "candidates.jsonl").read_text() == whole
    selected = [json.loads(line) for line in (part / "selected.jsonl").read_text().splitlines()]
    assert len(selected) == 2
    assert reproalign(["verify", str(tmp_path / "whole"), str(part)]) == 0
