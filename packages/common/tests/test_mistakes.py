"""Every mistake gives one line that says what, where and what to do, exit code 2, and leaves nothing behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from toy.cli import main

from reproalign.common.models.tiny import save_tiny
from reproalign.common.models.tiny_tokenizers import tiny_tokenizer
from reproalign.common.testing import refusal

GOOD = {
    "prompt": [{"role": "user", "content": "Name a moon."}],
    "chosen": [{"role": "assistant", "content": "Europa."}],
    "rejected": [{"role": "assistant", "content": "Mars."}],
    "score_chosen": 9,
    "score_rejected": 2,
}
QUICK = ["trainer.max_steps=1", "trainer.save_strategy=no", "data.max_rows=4"]


def own(file: Path | str) -> list[str]:
    """Words that read a file of one's own."""
    return ["data=own", f"data.sets.own.path={file}"]


def lines(*rows) -> str:
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


@pytest.fixture
def fails(tmp_path, capsys, monkeypatch):
    """Run the smoke recipe with words that must fail; return its one line of error."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> str:
        return refusal("toy", main, ["train", "experiment=smoke", *words], capsys, untouched=tmp_path)

    return run


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["experiment=smok"], "unknown recipe 'smok' (did you mean 'smoke'?)"),
        (["loss.betta=1"], "unknown key 'loss.betta' (did you mean 'loss.beta'?)"),
        (["loss.beta.x=1"], "unknown key 'loss.beta.x'"),
        (["data=imdb"], "unknown data configuration 'imdb'"),
        (["data.sets.graded.source=gradedd"], "unknown data.sets.graded.source 'gradedd' (did you mean 'graded'?)"),
        (["loss.beta=abc"], "loss.beta=abc must be a number"),
        (["seed="], "seed= must be a whole number"),
        (["data.max_rows=none"], "data.max_rows=none must be a whole number or null"),
        (["model.trust_remote_code=yess"], "model.trust_remote_code=yess must be true or false"),
        (["model.revision=[a]"], "model.revision takes one value; write sweep.model.revision=[A,B] to run each"),
        (["output_dir=null"], "output_dir may not be null; it is text"),
        (["output_dir="], "output_dir is empty; give it a value (folder that the run writes"),
        (["data.sets=3"], "data.sets is a mapping; write data.sets.NAME.KEY=VALUE"),
        (["text=3"], "text is a section; write text.KEY=3, where KEY is one of: system_message"),
        (["loss.beta=${x}"], "loss.beta refers to the key x"),
        (["loss="], "unknown loss ''"),
        (["model=runs/x"], "write model.name=runs/x"),
        (["loss.beta=0"], "loss.beta=0.0 must be above 0"),
        (["loss.beta=[1"], "loss.beta=[1: cannot be read; close what is open"),
        (["model.revision=a\0b"], "model.revision holds a NUL character"),
        (["config=a\0b"], "cannot be read as YAML (embedded null byte)"),
        (["data=own", "data.sets.own.path=two\nlines"], "two\\nlines"),
        (["loss=simpo"], "unknown loss 'simpo'"),
        (["trainer.learning_rat=1"], "unknown key 'trainer.learning_rat' (did you mean 'trainer.learning_rate'?)"),
        (["trainer.seed=1"], "trainer.seed is set through seed"),
        (["trainer.push_to_hub=true"], "trainer.push_to_hub is set through hub.push"),
        (["learning_rate=1"], "unknown key 'learning_rate' (did you mean 'trainer.learning_rate'?)"),
        (["trainer.learning_rate=fast"], "trainer.learning_rate=fast must be a number"),
        (["trainer.per_device_train_batch_size=0"], "trainer.per_device_train_batch_size=0 must be at least 1"),
        (["trainer.max_steps=-5"], "trainer.max_steps=-5 must be at least -1"),
        (["trainer.max_steps=1.5"], "trainer.max_steps=1.5 must be a whole number"),
        (["trainer.bf16=maybe"], "trainer.bf16=maybe must be true or false"),
        (["trainer.lr_scheduler_type=cosin"], "unknown trainer.lr_scheduler_type 'cosin'"),
        (["trainer.eval_strategy=sometimes"], "unknown trainer.eval_strategy 'sometimes'"),
        (["trainer.log_level=foo"], "unknown trainer.log_level 'foo'"),
        (["trainer.optim_args=3"], "trainer.optim_args=3 must be text"),
        (["trainer.accelerator_config=nonsense"], "trainer.accelerator_config=nonsense must be a mapping"),
        (["trainer.do_train=false"], "trainer.do_train is set through the verb"),
        (["trainer.prediction_loss_only=true"], "trainer.prediction_loss_only does nothing: evaluations have"),
        (["trainer.include_num_input_tokens_seen=some"], "unknown trainer.include_num_input_tokens_seen 'some'"),
        (["trainer.label_smoothing_factor=0.1"], "trainer.label_smoothing_factor is set through loss.*"),
        (["trainer.dataloader_num_workers=-1"], "trainer.dataloader_num_workers=-1 must be at least 0"),
        (["trainer.dataloader_persistent_workers=true"], "persistent_workers option needs num_workers > 0"),
        (["trainer.report_to=nonsense"], "trainer.report_to=nonsense is refused: nonsense is not supported"),
        (["trainer.optim=galore_adamw"], "trainer.optim=galore_adamw is refused: You need to install `galore_torch`"),
        (["trainer.optim=sgd", "trainer.optim_args=momentum"], "optim_args=momentum is refused"),
        (["trainer.lr_scheduler_type=cosine_with_min_lr"], "is refused: One of min_lr or min_lr_rate should be set"),
        (["trainer.lr_scheduler_kwargs={x: 1}"], "trainer.lr_scheduler_kwargs={'x': 1} is refused"),
        (["trainer.torch_compile_backend=nonsense"], "trainer.torch_compile_backend=nonsense is refused"),
        (["trainer.gradient_checkpointing=true", "trainer.gradient_checkpointing_kwargs={x: 1}"], "is refused"),
        (["trainer.metric_for_best_model=foo"], "needs trainer.eval_strategy=steps or epoch"),
        (["trainer.save_strategy=best"], "trainer.save_strategy=best needs trainer.metric_for_best_model"),
        (
            ["trainer.metric_for_best_model=foo", "trainer.eval_strategy=steps", "trainer.eval_steps=1"],
            "unknown trainer.metric_for_best_model 'foo'; choose one of: eval_loss",
        ),
        (["logprobs.chunk_size=0"], "logprobs.chunk_size=0 must be at least 1"),
        (["output_dir=/dev/null/x"], "output_dir=/dev/null/x: cannot be made"),
        (["nonsense"], "'nonsense' is not of the form key=value"),
        (["--fast"], "unknown flag '--fast'"),
        (["reference.mode=adapter-disabled"], "needs adapters"),
        (["model.quantization=4bit", "model.lora.enabled=true"], "needs a GPU"),
        (["model.name=./nothing"], "model.name=./nothing: no such folder"),
        (["model.name=no/such/model"], "model.name=no/such/model: no such folder; give a model's folder"),
        (["model=tiny/llama"], "model=tiny/llama is no configuration; write model.name=tiny/llama"),
        (["model=[tiny,default]"], "model takes one name; write sweep.model=[tiny,default] to run each"),
        (["model.name=tiny:bert"], "unknown tiny model 'bert'"),
        (["model.chat_template=vicuna"], "model.chat_template=vicuna: no such template"),
        (["launch=fsdp"], "launch.strategy=fsdp needs GPUs"),
        (["launch.processes=2"], "launch.strategy=single runs one process, not 2"),
        (["launch=ddp", "launch.processes=3", "launch.machines=2"], "not divisible by launch.machines=2"),
        (["text.max_prompt_length=256"], "must be below text.max_length=256"),
        (["text.overlong=error", "text.max_length=40", "text.max_prompt_length=20"], "is longer than text.max_length"),
        (["trainer.eval_strategy=epoch", "data.sets.graded.eval_path=null"], "needs held-out pairs"),
        ([*own("missing.jsonl")], "data.sets.own.path=missing.jsonl: no such file"),
        ([*own("demo:poems")], "no such shipped data set"),
        (["data=hh", "data.sets.hh.name=no/such-set"], "no/such-set (split train) cannot be loaded from the Hub"),
        (["data=hh", "data.sets.hh.name=no/such-set"], "set data.sets.hh.path=FILE"),
    ],
)
def test_settings(fails, words, message):
    assert message in fails(*words)


def test_a_folder_that_is_no_model_is_named_with_the_remedy(fails, tmp_path):
    (tmp_path / "made/one/model").mkdir(parents=True)
    assert "'made/none' from the Hub (there is no such folder here)" in fails("model.name=made/none")
    assert "model.name=made/one is the folder of a run; give its model, made/one/model" in fails("model.name=made/one")
    assert "model=made/one is no configuration; write model.name=made/one/model" in fails("model=made/one")


@pytest.mark.parametrize("content", ['trainer: {run_name: "a\\0b"}', 'data: {sets: {"a\\0b": {path: x}}}'])
def test_nul_in_a_configuration_file(fails, tmp_path, content):
    (tmp_path / "mine.yaml").write_text(content)
    assert "holds a NUL character" in fails("config=mine.yaml")


def test_a_recipe_of_another_verb_or_none_and_a_key_that_is_not_set(capsys):
    assert "output_dir is not set; add output_dir=VALUE" in refusal("toy", main, ["train", "model=tiny"], capsys)
    assert "unknown verb 'trian' (did you mean 'train'?)" in refusal("toy", main, ["trian"], capsys)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pairs.xml", "unknown kind of file"),
        ("empty-folder", "one file named train* is needed, found none"),
        ("broken.parquet", "cannot be read as Parquet"),
        ("broken.json", "not valid JSON"),
        ("broken.jsonl.gz", "cannot be read"),
        ("empty.jsonl", "the file has no rows"),
        ("cut.jsonl", "cut.jsonl line 2: not valid JSON"),
        ("list.jsonl", "list.jsonl line 2: not a JSON object"),
        ("row.jsonl", "row.jsonl line 2: column 'chosen' is missing (the row has: prompt, rejected"),
        ("null.jsonl", "null.jsonl line 2: column 'chosen' is null"),
    ],
)
def test_files(fails, tmp_path, name, message):
    (tmp_path / "empty-folder").mkdir()
    for broken in ("pairs.xml", "broken.parquet", "broken.json", "broken.jsonl.gz"):
        (tmp_path / broken).write_text("prompt,chosen\n")
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "cut.jsonl").write_text(lines(GOOD, '{"prompt": '))
    (tmp_path / "list.jsonl").write_text(lines(GOOD, "[1, 2]"))
    (tmp_path / "row.jsonl").write_text(lines(GOOD, {key: GOOD[key] for key in GOOD.keys() - {"chosen"}}))
    (tmp_path / "null.jsonl").write_text(lines(GOOD, {**GOOD, "chosen": None}))
    assert message in fails(*own(name))


def test_bad_rows_can_be_skipped(tmp_path, caplog):
    file, folder = tmp_path / "pairs.jsonl", tmp_path / "run"
    file.write_text(lines(GOOD, "{", {**GOOD, "rejected": GOOD["chosen"]}, GOOD))
    words = [*own(file), "data.on_error=skip", *QUICK, f"output_dir={folder}"]
    assert main(["train", "experiment=smoke", *words, "--dry-run"]) == 0
    assert "2 bad rows of train-own were skipped; the first" in caplog.text  # and listed in no folder that is gone
    assert main(["train", "experiment=smoke", *words]) == 0
    assert f"listed in {folder}/rejects-train-own.jsonl" in caplog.text
    rejects = [json.loads(line) for line in (folder / "rejects-train-own.jsonl").read_text().splitlines()]
    assert [reject["place"].rpartition(" ")[2] for reject in rejects] == ["2", "3"]
    facts = json.loads((folder / "run.json").read_text())["fingerprints"]["data"]["train"]
    assert (facts["rows_read"], facts["rows_rejected"], facts["rows_used"]) == (4, 2, 2)


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
    assert message in fails(f"model.name={folder}", *QUICK)


def without(**changes):
    tokenizer = tiny_tokenizer()
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return tokenizer


def test_tokenizers_that_lack_something(fails, tmp_path):
    folder = save_tiny(tmp_path / "model")
    words = [f"model.name={folder}", *QUICK]
    without(chat_template=None).save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    assert "has no chat template; set model.chat_template" in fails(*words)
    without(eos_token=None).save_pretrained(folder)
    assert "has no EOS token" in fails(*words)
    without(bos_token=None).save_pretrained(folder)
    assert "puts BOS before every prompt" in fails(*words, "text.special_tokens=released")


def test_a_tokenizer_without_pad_pads_with_eos(tmp_path):
    folder = save_tiny(tmp_path / "model")
    without(pad_token=None).save_pretrained(folder)
    words = [f"model.name={folder}", f"output_dir={tmp_path / 'run'}", *QUICK]
    assert main(["train", "experiment=smoke", *words]) == 0


def test_output_folders_that_hold_something_else(fails, tmp_path):
    assert main(["train", "experiment=smoke", *QUICK, "output_dir=run"]) == 0
    assert "finished; choose another output_dir" in fails(*QUICK, "output_dir=run")
    error = fails(*QUICK, "output_dir=run", "loss.beta=0.7")
    assert "(differs in: loss.beta)" in error
    Path("other").mkdir()
    Path("other/thesis.tex").write_text("mine")
    assert "holds files that are not a run's" in fails("output_dir=other")
    assert "is a file" in fails("output_dir=other/thesis.tex")
