"""Every mistake gives one line that says what, where and what to do, exit code 2, and leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from reproalign.common.models.tiny import save_tiny
from reproalign.common.models.tiny_tokenizers import tiny_tokenizer
from reproalign.common.testing import refusal
from reproalign.mmpo.cli import main

GOOD = {
    "prompt": [{"role": "user", "content": "Name a moon."}],
    "chosen": [{"role": "assistant", "content": "Europa."}],
    "rejected": [{"role": "assistant", "content": "Mars."}],
    "score_chosen": 9,
    "score_rejected": 2,
}


def lines(*rows) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


@pytest.fixture
def fails(tmp_path, capsys, monkeypatch):
    """Run a command line that must fail; return its one line of error."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str, verb: str = "train") -> str:
        return refusal("mmpo", main, [verb, *words], capsys, untouched=tmp_path)

    return run


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["experiment=smok"], "unknown recipe 'smok' (did you mean 'smoke'?)"),
        (["experiment=smoke", "loss.betta=1"], "unknown key 'loss.betta' (did you mean 'loss.beta'?)"),
        (["experiment=smoke", "loss.beta.x=1"], "unknown key 'loss.beta.x'"),
        (["experiment=smoke", "data=imdb"], "unknown data configuration 'imdb'"),
        (["experiment=smoke", "data.sets.demo.source=imdbb"], "unknown data.sets.demo.source 'imdbb'"),
        (["experiment=smoke", "loss.beta=abc"], "loss.beta: Value 'abc'"),
        (["experiment=smoke", "loss.beta=0"], "loss.beta=0.0 must be above 0"),
        (["experiment=smoke", "loss.beta=[1"], "[1"),
        (["experiment=smoke", "loss=simpo"], "unknown loss 'simpo'"),
        (["experiment=smoke", "loss.label_smoothing=0.5"], "loss.label_smoothing=0.5 must be at least 0 and below 0.5"),
        (["experiment=smoke", "target.gamma=-1"], "target.gamma=-1.0 must be at least 0"),
        (["experiment=smoke", "variant=both"], "unknown variant 'both'"),
        (["experiment=smoke", "trainer.learning_rat=1"], "unknown key 'trainer.learning_rat' (did you mean 'trainer.learning_rate'?)"),
        (["experiment=smoke", "trainer.seed=1"], "trainer.seed is set through seed"),
        (["experiment=smoke", "trainer.learning_rate=fast"], "trainer.learning_rate=fast must be a number"),
        (["experiment=smoke", "trainer.per_device_train_batch_size=0"], "trainer.per_device_train_batch_size=0 must be at least 1"),
        (["experiment=smoke", "trainer.max_steps=-5"], "trainer.max_steps=-5 must be at least -1"),
        (["experiment=smoke", "output_dir=/dev/null/x"], "output_dir=/dev/null/x: cannot be made"),
        (["experiment=smoke", "trainer.eval_strategy=sometimes"], "unknown trainer.eval_strategy 'sometimes'"),
        (["experiment=smoke", "nonsense"], "'nonsense' is not of the form key=value"),
        (["experiment=smoke", "--fast"], "unknown flag '--fast'"),
        (["experiment=smoke-reward"], "run: mmpo reward experiment=smoke-reward"),
        (["data=demo"], "is not set; add"),
        (["experiment=smoke", "reference.mode=adapter-disabled"], "needs adapters"),
        (["experiment=smoke", "model.quantization=4bit", "model.lora.enabled=true"], "needs a GPU"),
        (["experiment=smoke", "launch=fsdp"], "launch.strategy=fsdp needs GPUs"),
        (["experiment=smoke", "launch.processes=2"], "launch.strategy=single runs one process, not 2"),
        (["experiment=smoke", "launch=ddp", "launch.processes=3", "launch.machines=2"], "not divisible by launch.machines=2"),
        (["experiment=smoke", "model.chat_template=vicuna"], "model.chat_template=vicuna: no such template"),
        (["experiment=smoke", "text.max_prompt_length=256"], "must be above 0 and below text.max_length=256"),
        (["experiment=smoke", "text.overlong=error", "text.max_length=40", "text.max_prompt_length=20"], "is longer than text.max_length=40"),
        (["experiment=smoke", "target.soft_labels=none.json"], "target.soft_labels=none.json: cannot be read"),
        (["experiment=smoke", "pairs.sampling=uniform"], "needs pairs.sampling_size"),
        (["experiment=smoke", "target.filter_threshold=100"], "leaves no pair"),
        (["experiment=smoke", "trainer.eval_strategy=epoch", "data.sets.demo.eval_path=null"], "needs held-out pairs"),
    ],
)  # fmt: skip
def test_settings(fails, words, message):
    assert message in fails(*words)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lines(GOOD, '{"prompt": '), "line 2: not valid JSON"),
        (lines(GOOD, "[1, 2]"), "line 2: not a JSON object"),
        (lines(GOOD, {**GOOD, "chosen": None}), "line 2: column 'chosen' is missing (the row has: chosen, prompt, rejected"),
        (lines({**GOOD, "chosen": [{"role": "assistant", "content": "  "}]}), "line 1: 'chosen' is empty"),
        (lines({**GOOD, "rejected": GOOD["chosen"]}), "line 1: chosen and rejected are the same"),
        (lines(GOOD, {**GOOD, "score_chosen": "high"}), "line 2: score_chosen='high' is not a number"),
        (lines(GOOD, {**GOOD, "score_rejected": float("nan")}), "line 2: score_rejected is nan; a finite number is needed"),
        (lines(GOOD, {**GOOD, "score_rejected": None}), "line 2: only one of score_chosen and score_rejected is given"),
        (lines({**GOOD, "score_rejected": None, "score_chosen": None}), "pair 1 has no scores"),
        (lines({**GOOD, "chosen": [{"role": "user", "content": "x"}]}), "line 1: 'chosen' must end with an assistant message"),
        (lines({**GOOD, "prompt": "text"}), "line 1: 'chosen' has no turn before the response"),
        ("", "the file has no rows"),
    ],
)  # fmt: skip
def test_rows(fails, tmp_path, content, message):
    file = tmp_path / "pairs.jsonl"
    file.write_text(content)
    error = fails("experiment=smoke", "data=own", f"data.sets.own.path={file}")
    assert message in error
    if "line" in message:
        assert str(file) in error


def test_bad_rows_can_be_set_aside(tmp_path, monkeypatch):
    file, folder = tmp_path / "pairs.jsonl", tmp_path / "run"
    file.write_text(lines(GOOD, "{", {**GOOD, "rejected": GOOD["chosen"]}, GOOD))
    words = ["train", "experiment=smoke", "data=own", f"data.sets.own.path={file}"]
    assert main([*words, "data.on_error=skip", "trainer.max_steps=1", f"output_dir={folder}"]) == 0
    rejects = [json.loads(line) for line in (folder / "rejects-train-own.jsonl").read_text().splitlines()]
    assert [reject["place"].rpartition(" ")[2] for reject in rejects] == ["2", "3"]
    facts = json.loads((folder / "run.json").read_text())["fingerprints"]["data"]["train"]
    assert (facts["rows_read"], facts["rows_rejected"], facts["rows_used"]) == (4, 2, 2)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing.jsonl", "data.sets.own.path=missing.jsonl: no such file"),
        ("demo:poems", "no such shipped data set"),
        ("pairs.csv", "unknown kind of file"),
        ("empty-folder", "one file named train* is needed, found none"),
        ("broken.parquet", "cannot be read as Parquet"),
        ("broken.json", "not valid JSON"),
        ("broken.jsonl.gz", "cannot be read"),
    ],
)
def test_files(fails, tmp_path, path, message):
    (tmp_path / "empty-folder").mkdir()
    for name in ("pairs.csv", "broken.parquet", "broken.json", "broken.jsonl.gz"):
        (tmp_path / name).write_text("prompt,chosen\n")
    assert message in fails("experiment=smoke", "data=own", f"data.sets.own.path={path}")


def test_a_data_set_that_cannot_be_loaded(fails):
    error = fails("experiment=smoke", "data=hh", "data.sets.hh.name=no/such-set")
    assert "no/such-set (split train) cannot be loaded from the Hub" in error
    assert "set data.sets.hh.path=FILE" in error


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is not valid JSON"),
        (lambda folder: (folder / "config.json").unlink(), "not a model folder"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x"), "cannot load the model"),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot load the model"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "cannot load the tokenizer"),
    ],
    ids=["config", "no-config", "weights", "no-weights", "tokenizer"],
)
def test_unreadable_model_folders(fails, tmp_path, harm, message):
    folder = save_tiny(tmp_path / "model")
    harm(folder)
    assert message in fails("experiment=smoke", f"model.name={folder}")


def test_a_model_folder_that_does_not_exist(fails):
    assert "model.name=./nothing: no such folder" in fails("experiment=smoke", "model.name=./nothing")
    assert "unknown tiny model 'bert'" in fails("experiment=smoke", "model.name=tiny:bert")


def without(**changes):
    tokenizer = tiny_tokenizer()
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return tokenizer


def test_tokenizers_that_lack_something(fails, tmp_path):
    folder = save_tiny(tmp_path / "model")
    without(chat_template=None).save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    assert "has no chat template; set model.chat_template" in fails("experiment=smoke", f"model.name={folder}")
    without(eos_token=None).save_pretrained(folder)
    assert "has no EOS token" in fails("experiment=smoke", f"model.name={folder}")
    without(bos_token=None).save_pretrained(folder)
    error = fails("experiment=smoke", f"model.name={folder}", "text.special_tokens=released")
    assert "puts BOS before every prompt" in error


def test_a_tokenizer_without_pad_pads_with_eos(tmp_path):
    folder = save_tiny(tmp_path / "model")
    without(pad_token=None).save_pretrained(folder)
    words = ["experiment=smoke", f"model.name={folder}", f"output_dir={tmp_path / 'run'}", "trainer.max_steps=1"]
    assert main(["train", *words]) == 0


def test_output_folders_that_hold_something_else(fails, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["experiment=smoke", "trainer.max_steps=1", "evaluate_before=false"]
    assert main(["train", *words, "output_dir=run"]) == 0
    assert "finished; choose another output_dir" in fails(*words, "output_dir=run")
    error = fails(*words, "output_dir=run", "loss.beta=0.7")
    assert "(differs in: loss.beta)" in error
    Path("other").mkdir()
    Path("other/thesis.tex").write_text("mine")
    assert "holds files that are not a run's" in fails(*words, "output_dir=other")
    assert "is a file" in fails(*words, "output_dir=other/thesis.tex")


def test_an_evaluated_policy_needs_its_reference(fails):
    words = ["model=tiny", "data=demo", "output_dir=out"]
    assert "set reference.model" in fails(*words, verb="evaluate")
