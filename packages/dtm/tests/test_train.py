"""``dtm train`` end to end on a tiny model: clusters, variants, baselines, records, resumption."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from reproalign.common.records import fingerprint_folder
from reproalign.common.testing import logged
from reproalign.dtm.cli import main
from reproalign.dtm.train.trainer import SupervisedTrainer

SUBJECTS = ["the dog", "a fox", "the sun", "two and two", "bread", "a question"]
ROWS = [
    {
        "instruction": f"Say something about {SUBJECTS[n % 6]}, number {n}.",
        "input": "in the sun" if n % 5 == 0 else "",
        "output": f"{SUBJECTS[(n + 1) % 6]} jumps over the lazy dog" + " again" * (n % 7),
        "score": n / 10,
    }
    for n in range(48)
]
QUICK = [
    "model.name=tiny:llama",
    "trainer.max_steps=6",
    "trainer.warmup_steps=1",
    "trainer.per_device_train_batch_size=2",
    "trainer.save_strategy=steps",
    "trainer.save_steps=2",
    "trainer.learning_rate=0.01",
    "trainer.logging_steps=1",
    "trainer.eval_strategy=steps",
    "trainer.eval_steps=5",
]


def record(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    lines = [json.dumps(row) + "\n" for row in ROWS]
    (folder / "rows.jsonl").write_text("".join(lines[:40]))
    (folder / "held_out.jsonl").write_text("".join(lines[40:]))
    (folder / "labels.json").write_text(json.dumps([n % 4 for n in range(40)]))
    return folder


@pytest.fixture(scope="module")
def words(data: Path) -> list[str]:
    return ["train", *QUICK, f"dispersal={data}"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, words) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "cluster"
    assert main([*words, "cluster=2", f"output_dir={folder}"]) == 0
    return folder


def test_a_sub_model_is_an_adapter_that_peft_loads(trained: Path) -> None:
    settings = json.loads((trained / "model" / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["lora_dropout"]) == (16, 16, 0.05)
    assert sorted(settings["target_modules"]) == ["down_proj", "gate_proj", "up_proj"]
    tensors = load_file(trained / "model" / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
    assert all(tensor.any() for tensor in tensors.values())
    base = AutoModelForCausalLM.from_pretrained(settings["base_model_name_or_path"])
    model = PeftModel.from_pretrained(base, trained / "model")
    ids = AutoTokenizer.from_pretrained(trained / "model")("the dog", return_tensors="pt")["input_ids"]
    with model.disable_adapter():
        before = model(ids).logits
    assert not torch.equal(model(ids).logits, before)


def test_the_record_says_what_was_trained_on(trained: Path) -> None:
    found = record(trained)
    assert found["rows"] == {
        "read": 40,
        "placeholders": 0,
        "filtered": 0,
        "of_clusters": 10,
        "selected": 10,
        "unsupervised": 0,
        "trained": 10,
        "supervised_tokens": found["rows"]["supervised_tokens"],
    }
    assert {"rows", "labels", "train rows", "held-out rows"} <= found["fingerprints"]["data"].keys()
    assert set(found["metrics"]) == {"eval_loss", "eval_perplexity", "eval_accuracy"}
    assert len(logged(trained, "token_loss")) == 6
    assert logged(trained, "loss")[-1] < logged(trained, "loss")[0]
    assert (trained / "plots" / "training.png").stat().st_size > 5_000


def test_stopped_in_the_middle_and_resumed_gives_the_same_bits(tmp_path, trained, words, monkeypatch) -> None:
    folder = tmp_path / "stopped"
    original = SupervisedTrainer.training_step

    def dying(self, *args, **kwargs):
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(SupervisedTrainer, "training_step", dying)
        assert main([*words, "cluster=2", f"output_dir={folder}"]) == 130
    assert main([*words, "cluster=2", f"output_dir={folder}"]) == 0
    assert record(folder)["resumed_from"] == "checkpoint-2"
    assert fingerprint_folder(folder / "model") == fingerprint_folder(trained / "model")
    assert record(folder)["metrics"] == record(trained)["metrics"]


@pytest.mark.slow
def test_all_clusters_begin_at_the_same_a_and_end_at_other_weights(tmp_path, trained, words) -> None:
    """Each in a process of its own; the factor average of DTM's release means something only then."""
    folder = tmp_path / "each"
    assert main([*words, "clusters=1+2", f"output_dir={folder}"]) == 0
    starts = [
        json.loads((path / "model" / "adapter_manifest.json").read_text()) for path in (folder / "cluster-1", trained)
    ]
    assert starts[0] == starts[1]
    assert len(starts[0]["initial_a_sha256"]) == 64
    whole = record(folder)
    assert whole["same_start"] is True
    assert {name: entry["status"] for name, entry in whole["children"].items()} == {
        "cluster-1": "finished",
        "cluster-2": "finished",
    }
    prints = [fingerprint_folder(folder / name / "model") for name in ("cluster-1", "cluster-2")]
    assert prints[1] == fingerprint_folder(trained / "model") != prints[0]


def test_another_init_seed_begins_elsewhere_and_another_seed_does_not(tmp_path, trained, words) -> None:
    starts = {}
    for name, change in (("init", "init_seed=7"), ("order", "seed=7")):
        folder = tmp_path / name
        assert main([*words, "cluster=2", "trainer.max_steps=1", change, f"output_dir={folder}"]) == 0
        starts[name] = record(folder)["adapter_start"]
    assert starts["order"] == record(trained)["adapter_start"] != starts["init"]


def test_vanilla_takes_all_rows_and_a_share_takes_the_first_of_the_shuffled(tmp_path, data, words) -> None:
    whole = [*(word for word in words if not word.startswith("dispersal=")), f"rows=[{data / 'rows.jsonl'}]"]
    assert (
        main(
            [
                *whole,
                "trainer.max_steps=1",
                "trainer.eval_strategy=no",
                "data_ratio=0.8",
                f"output_dir={tmp_path / 'part'}",
            ]
        )
        == 0
    )
    found = record(tmp_path / "part")
    assert (found["rows"]["of_clusters"], found["rows"]["trained"]) == (40, 32)
    assert found["metrics"] == {}


def test_the_released_variant(tmp_path, words) -> None:
    """Rows weigh alike, no EOS; a row without a token to train on is kept, and its NaN is not logged."""
    folder = tmp_path / "released"
    more = [
        "variant=released",
        "tokens.max_length=165",
        "trainer.per_device_train_batch_size=1",
        "trainer.max_steps=10",
    ]
    assert main([*words, *more, f"output_dir={folder}"]) == 0
    found = record(folder)
    assert 0 < found["rows"]["unsupervised"] < found["rows"]["trained"] == 40
    assert all(isinstance(value, float) for value in logged(folder, "loss"))
    tensors = load_file(folder / "model" / "adapter_model.safetensors")
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_full_fine_tuning_with_a_penalty(tmp_path, words) -> None:
    full = ["model.lora.enabled=false", "model.dtype=float32", "cluster=0", "trainer.max_steps=3"]
    held = ["regularizer.name=l2", "regularizer.weight=1"]
    assert main([*words, *full, *held, f"output_dir={tmp_path / 'held'}"]) == 0
    assert (tmp_path / "held" / "model" / "model.safetensors").is_file()
    assert not (tmp_path / "held" / "model" / "adapter_manifest.json").exists()
    penalties = logged(tmp_path / "held", "penalty")
    assert penalties[0] == 0 < penalties[-1]


def test_replay_mixes_as_many_texts_as_rows_and_filtering_leaves_rows_out(tmp_path, data, words) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"the quick brown fox {n}"}) + "\n" for n in range(30)))
    more = ["trainer.max_steps=2", f"replay.path={texts}", "filter.column=score", "filter.above=1.95"]
    assert main([*words, *more, f"output_dir={tmp_path / 'mixed'}"]) == 0
    rows = record(tmp_path / "mixed")["rows"]
    assert (rows["filtered"], rows["selected"], rows["replayed"], rows["trained"]) == (20, 20, 20, 40)
    more[2:] = ["filter.column=score", "filter.above=1.95", "seed=7"]
    assert main([*words, *more, f"output_dir={tmp_path / 'other'}"]) == 0
    prints = [record(tmp_path / name)["fingerprints"]["data"]["replay"] for name in ("mixed", "other")]
    assert prints[0]["sha256"] != prints[1]["sha256"], "another seed draws other texts"
    assert prints[1]["rows"] == 20
    scores = tmp_path / "scores.json"
    scores.write_text(json.dumps([row["score"] for row in ROWS[:40]]))
    more = ["trainer.max_steps=1", f"filter.scores=[{scores}]", "filter.above=1.95", "cluster=1"]
    assert main([*words, *more, f"output_dir={tmp_path / 'scored'}"]) == 0
    assert record(tmp_path / "scored")["rows"]["selected"] == 5


def test_empty_rows_of_the_release_keep_their_labels_and_are_left_out(tmp_path, words) -> None:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*ROWS[:4], {}, ROWS[4]]))
    (tmp_path / "labels.json").write_text("[0, 0, 1, 1, 0, 0]")
    one = [f"dispersal={tmp_path}", "cluster=0", "trainer.max_steps=1", "trainer.eval_strategy=no"]
    assert main([*words, *one, f"output_dir={tmp_path / 'o'}"]) == 0
    rows = record(tmp_path / "o")["rows"]
    assert (rows["read"], rows["placeholders"], rows["of_clusters"], rows["trained"]) == (6, 1, 4, 3)


@pytest.mark.slow
def test_variations_are_the_ingredients_of_a_soup(tmp_path, words, capsys) -> None:
    folder = tmp_path / "soup"
    variations = "variations=[{seed:1,trainer.learning_rate:0.001},{trainer.learning_rate:0.02,model:{lora:{r:4}}}]"
    assert main([*words, "trainer.max_steps=1", variations, f"output_dir={folder}", "--dry-run"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert "seed=1" in first
    assert "trainer.learning_rate=0.001" in first
    assert "model.lora.r=4" in second
    assert main([*words, "trainer.max_steps=1", variations, f"output_dir={folder}"]) == 0
    config = json.loads((folder / "variation-1" / "model" / "adapter_config.json").read_text())
    assert config["r"] == 4
    assert record(folder)["same_start"] is False


@pytest.mark.slow
def test_a_sub_model_that_failed_is_named_and_the_rest_goes_on_from_there(tmp_path, words, monkeypatch, capsys) -> None:
    folder = tmp_path / "each"
    command = [*words, "clusters=0+1", "trainer.max_steps=2", f"output_dir={folder}"]
    monkeypatch.setenv("REPROALIGN_CACHE", "/dev/null/nowhere")
    assert main(command) == 2
    assert "dtm: error: cluster-0: /dev/null/nowhere/models: not a directory" in capsys.readouterr().err
    assert record(folder)["status"] == "failed"
    monkeypatch.setenv("REPROALIGN_CACHE", str(tmp_path / "cache"))
    assert main(command) == 0
    assert record(folder)["resumptions"] == 1
    assert main([*command[:-1], f"output_dir={folder}"]) == 2, "a finished run is not run again"


def test_float16_without_an_accelerator_falls_back_and_says_so(tmp_path, words, caplog) -> None:
    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator")
    half = ["model.dtype=float16", "trainer.fp16=true", "trainer.max_steps=1"]
    assert main([*words, *half, f"output_dir={tmp_path / 'half'}"]) == 0
    assert "this run computes in float32" in caplog.text
    assert set(record(tmp_path / "half")["precision"].values()) == {"float32"}


def test_a_warm_up_longer_than_the_run_is_warned_of(tmp_path, words, caplog) -> None:
    more = ["trainer.max_steps=-1", "trainer.warmup_steps=100", "cluster=0"]
    assert main([*words, *more, f"output_dir={tmp_path / 'short'}"]) == 0
    assert "trainer.warmup_steps is 100, and the run has 3 steps" in caplog.text
