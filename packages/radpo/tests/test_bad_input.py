"""Every mistake gives one line that says what, where and what to do, exit code 2, and leaves nothing behind."""

from __future__ import annotations

import json

import pytest

from reproalign.common.testing import refusal
from reproalign.radpo.cli import main

ROW = {"prompt": "Name a moon.", "chosen": "Europa.", "rejected": "Mars."}


@pytest.fixture
def fails(tmp_path, capsys, monkeypatch):
    """Run a command line that must fail; return its one line of error."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> str:
        words = ("train", "experiment=smoke", "output_dir=run", *words)
        return refusal("radpo", main, words, capsys, untouched=tmp_path)

    return run


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["loss.name=simpo"], "unknown loss 'simpo'"),
        (["loss=slic", "loss.cliprange=0.3"], "unknown key 'loss.cliprange'"),
        (["loss.risk=entropic", "loss.risk.level=0.9"], "unknown key 'loss.risk.level'"),
        (["loss.risk.level=0"], "loss.risk.level=0.0 must be above 0"),
        (["variant=released", "loss.risk.level=1.5"], "loss.risk.level=1.5 must be above 0 and at most 1"),
        (["loss.risk=entropic", "loss.risk.mu=0"], "loss.risk.mu=0.0 must be above 0"),
        (["loss.risk=mean_semideviation", "loss.risk.kappa=2"], "loss.risk.kappa=2.0 must be above 0 and at most 1"),
        (["loss.confidence_level=0.9"], "loss.confidence_level is now called loss.risk.level"),
        (["loss.second_form=true"], "loss.second_form is gone: loss.alpha=0.5 is the second form"),
        (["loss.risk=var"], "unknown loss.risk 'var'"),
        (["loss.beta=0"], "loss.beta=0.0 must be above 0"),
        (["loss=tdpo", "loss.beta=-1"], "loss.beta=-1.0 must be above 0"),
        (["loss.alpha=-1"], "loss.alpha=-1.0 must be at least 0"),
        (["loss=cdpo", "loss.epsilon=0.5"], "loss.epsilon=0.5 must be at least 0 and below 0.5"),
        (["loss=ppo", "loss.cliprange=0"], "loss.cliprange=0.0 must be above 0"),
        (["loss=ppo", "loss.v_head_max_grad_norm=0"], "loss.v_head_max_grad_norm=0.0 must be above 0"),
        (["loss=kto", "loss.desirable_weight=-1"], "loss.desirable_weight=-1.0 must be at least 0"),
        (["loss.risk.replace_logps=true"], "unknown key 'loss.risk.replace_logps'"),
        (["loss=ra-dpo", "reference.mode=cached"], "needs the reference's whole distribution"),
        (["loss=kto", "trainer.per_device_train_batch_size=1"], "batches of at least 2 rows"),
        (["loss=kto", "rows.frac_unique_desirable=0"], "these are of one class"),
        (["loss=kto", "rows.selection=scores"], "selection=scores needs a score of each response"),
        (["trainer.num_train_epochs=1.5"], "must be a whole number"),
        (["data=own", "data.sets.a={source: alpacaeval, path: demo:pairs-train}"], "alpacaeval is for evaluation only"),
        (["data.max_rows=3"], "3 rows fill no batch of 4 for each of 1 process"),
        (["model.load_from=./nowhere"], "model.load_from=./nowhere: no such folder"),
        (["model.load_from=runs/no/model"], "model.load_from=runs/no/model: no such folder"),
        (["variant=both"], "unknown variant 'both'"),
        (["trainer.num_train_epochs=2", "trainer.eval_strategy=epoch"], "all epochs are laid out as one here"),
        (["trainer.num_train_epochs=2", "rows.incomplete=keep"], "incomplete=keep is for one epoch"),
        (["trainer.lr_scheduler_type=linear"], "trainer.lr_scheduler_type is not read"),
        (["warmup_steps=-1"], "warmup_steps=-1 must be at least 0"),
        (["trainer.eval_strategy=steps", "data.sets.demo.eval_path=null"], "eval_strategy needs held-out pairs"),
        (["released.processes=2"], "released.processes is read by variant=released alone"),
        (["rows.clean_up_spaces=false"], "rows.clean_up_spaces is read by variant=released alone"),
        (["loss=ppo", "loss.ppo_epochs=2"], "loss.ppo_epochs is read by variant=released alone"),
        (
            ["variant=released", "released.processes=0"],
            "released.processes=0 must be at least 1",
        ),
        (["variant=released", "rows.incomplete=keep"], "the release drops incomplete batches; set variant=paper"),
        (["variant=released", "loss=ppo"], "steps on every micro-batch (ERRATA Q18), not on 1 process x 2 of them"),
        (["loss=ppo", "model.lora.enabled=true", "model.lora.merge=true"], "would lose PPO's value head"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_settings(fails, words, message):
    rows = [ROW | {"prompt": f"Name moon {n}."} for n in range(8)]
    if "rows.selection=scores" in words:  # these rows have none
        with open("pairs.jsonl", "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        words = [*words, "data=own", "data.sets.own.path=pairs.jsonl"]
    assert message in fails(*words)


def test_a_key_of_sample_that_changed_its_name_is_answered_with_the_new_one(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = refusal("radpo", main, ("sample", "data.max_eval_rows=4", "output_dir=run"), capsys, untouched=tmp_path)
    assert "data.max_eval_rows is now called data.max_rows; write data.max_rows=4" in said


def test_data_without_pairs_is_for_sft_alone(fails, tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "Yes."}]} for n in range(8)
    ]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["data=ultrachat", "data.sets.ultrachat.path=chat.jsonl"]
    assert "no prompt has a pair, which kind=paired needs" in fails("loss=dpo", *words)
    assert main(["train", "experiment=smoke", "loss=sft", *words, "trainer.max_steps=1", "output_dir=sft"]) == 0


def test_the_folder_of_a_run_is_told_from_its_model(fails, tmp_path):
    (tmp_path / "sft" / "model").mkdir(parents=True)
    assert "model.load_from=sft is the folder of a run; give its model, sft/model" in fails("model.load_from=sft")


@pytest.mark.parametrize("key", ["model.load_from", "reference.model", "model.tokenizer", "model.name"])
def test_a_folder_without_a_model_is_named_with_its_key(fails, tmp_path, key):
    if key != "model.tokenizer":  # which may be a folder of its own, without a model
        (tmp_path / "empty").mkdir()
        assert f"error: {key}=empty: not a model folder (no config.json)" in fails(f"{key}=empty")
        (tmp_path / "empty" / "config.json").write_text("{")
        assert f"error: {key}=empty: config.json is not valid JSON" in fails(f"{key}=empty")
    assert f"error: {key}=./nowhere: no such folder" in fails(f"{key}=./nowhere")
