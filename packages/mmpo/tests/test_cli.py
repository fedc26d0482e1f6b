"""What the command tells: its help, its configuration, and the authors' command lines in its own words."""

from __future__ import annotations

import json
import re
import shlex
import sys

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from reproalign.common.command.recipes import read_headers
from reproalign.common.errors import UserError
from reproalign.common.mappings import flatten
from reproalign.common.options.compose import compose
from reproalign.common.options.keys import known_keys
from reproalign.common.options.load import load_object
from reproalign.common.options.words import as_word
from reproalign.common.testing import composed
from reproalign.mmpo.cli import APP, main
from reproalign.mmpo.released_cli import translate

VERBS = {verb.name: verb for verb in APP.verbs if not verb.when}
SMALLEST = {
    "sft": ["experiment=smoke-sft"],
    "train": ["experiment=smoke"],
    "reward": ["experiment=smoke-reward"],
    "evaluate": ["model=tiny", "data=demo", "output_dir=out"],
    "best-of-n": ["policy.name=tiny:llama", "reward.name=tiny:llama", "prompts=p.jsonl", "output_dir=out"],
    "mt-bench": ["model.name=tiny:llama", "questions=q.jsonl", "output_dir=out"],
}
POLICY_RECIPE = {  # in the release's format, with the published values
    "model_name_or_path": "kykim0/gemma-7b-ultrachat-sft",
    "torch_dtype": "bfloat16",
    "use_flash_attention_2": False,
    "dataset_mixer": {"allenai/ultrafeedback_binarized_cleaned": 1.0},
    "dataset_splits": ["train_prefs", "test_prefs"],
    "preprocessing_num_workers": 12,
    "bf16": True,
    "beta": 0.01,
    "bt_beta": None,
    "gradient_accumulation_steps": 16,
    "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
    "hub_model_id": "gemma-7b-dpo",
    "learning_rate": "5e-7",  # as YAML reads a number without a point
    "logging_steps": 10,
    "lr_scheduler_type": "cosine",
    "max_length": 1024,
    "max_prompt_length": 512,
    "num_train_epochs": 3,
    "optim": "adamw_torch",
    "output_dir": "runs/gemma-7b-ultrafeedback",
    "per_device_train_batch_size": 1,
    "push_to_hub": False,
    "save_strategy": "steps",
    "save_steps": 950,
    "seed": 42,
    "warmup_ratio": 0.3,
}
REWARD_RECIPE = {
    "model_name_or_path": "kykim0/gemma-7b-ultrachat-sft",
    "torch_dtype": "bfloat16",
    "use_flash_attention_2": True,
    "dataset_mixer": {"allenai/ultrafeedback_binarized_cleaned": 1.0},
    "dataset_splits": ["train_prefs", "test_prefs"],
    "preprocessing_num_workers": 12,
    "bf16": True,
    "do_eval": True,
    "evaluation_strategy": "steps",
    "eval_steps": 100,
    "gradient_accumulation_steps": 8,
    "gradient_checkpointing": True,
    "gradient_checkpointing_kwargs": {"use_reentrant": False},
    "learning_rate": 3e-6,
    "logging_steps": 10,
    "lr_scheduler_type": "linear",
    "max_length": 1024,
    "num_train_epochs": 2,
    "optim": "adamw_torch",
    "output_dir": "runs/gemma-7b-reward",
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 8,
    "save_only_model": True,
    "save_strategy": "epoch",
    "seed": 42,
    "weight_decay": 0.0,
}


@pytest.fixture
def prints(capsys):
    """Run a command line that must succeed; return what it prints."""

    def run(*words: str) -> str:
        assert main(words) == 0
        return capsys.readouterr().out

    return run


@pytest.fixture
def released(tmp_path):
    """Write a recipe in the release's format and translate it."""

    def run(recipe: dict, *flags: str) -> tuple[list[str], list[str]]:
        file = tmp_path / "recipe.yaml"
        file.write_text(yaml.safe_dump(recipe))
        return translate(file, list(flags))

    return run


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"]], ids=" ".join)
def test_the_help_names_every_verb_recipe_and_flag(prints, words):
    help_words = prints(*words).split()
    assert {*VERBS, "translate", "recipes", *read_headers(APP.package)} <= set(help_words)
    assert {"--help", "--version", "--cfg", "--dry-run", "--traceback"} <= set(help_words)


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_verb_lists_every_key_unbroken(prints, verb):
    keys = {key.replace("trainer", "trainer.*") for key in known_keys(load_object(VERBS[verb].schema))}
    assert keys <= set(prints(verb, "--help").split())


def test_of_two_verbs_with_one_name_a_key_decides(prints):
    schema = next(verb.schema for verb in APP.verbs if verb.when == "suite")
    words = set(prints("evaluate", "suite=ama", "--help").split())
    assert set(known_keys(load_object(schema))) <= words
    assert "rewardbench" not in words
    suite = ["suite=dtm", "model=tiny", "output_dir=out", "suite.limit=3"]
    assert yaml.safe_load(prints("evaluate", *suite, "--cfg"))["suite"]["limit"] == 3


def test_the_words_of_the_call_count_not_those_of_the_process(prints, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pytest", "-h"])
    assert yaml.safe_load(prints("train", "experiment=smoke", "--cfg"))["seed"] == 42
    monkeypatch.setattr(sys, "argv", ["pytest"])
    assert "Usage: mmpo train" in prints("train", "-h")


def test_without_words_the_help_is_shown_and_the_exit_code_is_that_of_a_mistake(capsys):
    assert main([]) == 2
    assert "Usage: mmpo VERB" in capsys.readouterr().out


def test_the_version(prints):
    name, version = prints("--version").split(maxsplit=1)
    assert name == "mmpo"
    assert version.strip()


def test_recipes_lists_every_recipe(prints, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert set(read_headers(APP.package)) <= set(prints("recipes").replace("│", " ").split())


@pytest.mark.parametrize("verb", VERBS)
def test_the_printed_configuration_composes_to_itself(prints, verb):
    words = [*SMALLEST[verb], "output_dir='a b, {c}: \"d\"'"]
    if verb in ("sft", "train", "reward"):
        words += [
            "data.sets.a={name: org/a-b.c, fraction: 0.5}",
            "trainer.report_to=[none]",
            "launch.slurm_options={time: '24:00:00'}",
        ]
    printed = yaml.safe_load(prints(verb, *words, "--cfg"))
    assert printed == composed(APP, *words, verb=verb)
    again = [f"{key}={json.dumps(value)}" for key, value in flatten(printed).items()]
    assert composed(APP, *again, verb=verb) == composed(APP, *words, verb=verb)


@pytest.mark.parametrize("verb", VERBS)
def test_a_dry_run_writes_nothing(prints, tmp_path, monkeypatch, verb):
    monkeypatch.chdir(tmp_path)
    assert prints(verb, *SMALLEST[verb], "--dry-run").startswith(f"mmpo {verb}")
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["seed=${nothing}"], "Interpolation key 'nothing' not found"),
        (["~seed=42"], "'~seed=42' is not of the form key=value"),
        (["data.sets=3"], "data.sets is a mapping; write data.sets.NAME=VALUE"),
    ],
)
def test_hydra_syntax_that_cannot_work_is_a_users_mistake(words, message):
    with pytest.raises(UserError, match=re.escape(message)):
        composed(APP, "experiment=smoke", *words)


def test_a_mixture_can_be_given_by_name_or_as_a_whole():
    for words in (
        ["data.sets={a: {fraction: 0.5}, b: {first: 1}}"],
        ["data.sets.a.fraction=0.5", "data.sets.b.first=1"],
    ):
        sets = composed(APP, "experiment=smoke", "data=own", *words)["data"]["sets"]
        assert (sets["a"]["fraction"], sets["b"]["first"], len(sets)) == (0.5, 1, 2)


@pytest.mark.parametrize(
    ("verb", "recipe", "flags", "packaged"),
    [
        ("train", POLICY_RECIPE, ["--bt_beta=1.1"], "gemma-7b-ultrafeedback"),
        ("train", POLICY_RECIPE, ["--output_dir=runs/gemma-7b-ultrafeedback-dpo"], "gemma-7b-ultrafeedback-dpo"),
        ("reward", REWARD_RECIPE, [], "gemma-7b-reward"),
    ],
)
def test_a_translated_recipe_is_the_packaged_one(released, verb, recipe, flags, packaged):
    words, unknown = released(recipe, *flags)
    config, expected = composed(APP, *words, verb=verb), composed(APP, f"experiment={packaged}")
    del config["launch"], expected["launch"]  # given to `accelerate launch` in the release
    assert config == expected
    assert unknown == []


def test_what_cannot_be_translated_is_named(tmp_path, capsys):
    file = tmp_path / "recipe.yaml"
    more = {"chat_template": "{% for message in messages %}", "save_start_steps": 859, "filter_threshold": 0.5}
    file.write_text(yaml.safe_dump({**POLICY_RECIPE, **more}))
    assert main(["translate", str(file), "--gamma=2", "--output_dir=my runs, $HOME"]) == 0
    printed = capsys.readouterr()
    config = composed(APP, *shlex.split(printed.out), verb="train")
    assert config["output_dir"] == "my runs, $HOME"
    assert config["target"]["filter_threshold"] is None  # the release never filters (ERRATA Q9)
    assert printed.err == "without meaning here: chat_template, filter_threshold, save_start_steps, gamma\n"


def test_what_a_policy_recipe_leaves_out_is_the_releases_default_not_ours(released):
    words, _ = released({"loss_type": "ipo", "max_length": None, "torch_dtype": None, "output_dir": "out"})
    config = composed(APP, "model=tiny", "data=demo", *words, verb="train")
    assert config["loss"]["beta"] == 0.1
    assert (config["text"]["max_length"], config["text"]["max_prompt_length"]) == (512, 128)
    assert config["trainer"]["optim"] == "rmsprop"


def test_flags_are_read_as_the_release_reads_them(released):
    flags = ["--dataset_splits=train_a,test_b", "--lora_target_modules=q_proj,k_proj", "--use_peft=true", "--bf16=yes"]
    config = composed(
        APP, *released(POLICY_RECIPE, *flags, "--load_in_4bit=True", "--seed=1", "--seed=2")[0], verb="train"
    )
    (one,) = config["data"]["sets"].values()
    assert (one["split"], one["eval_split"]) == ("train_a", "test_b")
    assert config["model"]["lora"]["target_modules"] == ["q_proj", "k_proj"]
    assert (config["model"]["lora"]["enabled"], config["model"]["quantization"]) == (True, "4bit")
    assert config["trainer"]["bf16"] is False  # only "true" and "True" are true
    assert config["seed"] == 2


def test_mixtures_and_shp(released):
    mixture = {"org/a-b.c": 0.5, "d": 1.0}
    config = composed(APP, *released({**POLICY_RECIPE, "dataset_mixer": mixture})[0], verb="train")
    assert {one["name"]: one["fraction"] for one in config["data"]["sets"].values()} == mixture
    one = {"dataset_mixer": {"Ahjeong/SHP_filtered_MMPO": 0.5}, "dataset_splits": ["train_prefs"]}
    config = composed(APP, *released({**POLICY_RECIPE, **one})[0], verb="train")
    (one,) = config["data"]["sets"].values()
    assert (one["source"], one["fraction"], one["eval_split"]) == ("shp", 0.5, None)
    assert (config["pairs"]["cap_per_prompt"], config["pairs"]["decontaminate"]) == (5, None)


@pytest.mark.parametrize(
    ("content", "flags", "message"),
    [
        ("a: [", [], "cannot be read as YAML"),
        ("- a", [], "a mapping of keys to values is needed"),
        ("dataset_mixer: [a, b]", [], "dataset_mixer must be a mapping"),
        ("dataset_mixer: {a: 1}", ["--dataset_splits=test"], "one training split and at most one other"),
        ("beta: 0.1", ["--beta"], "'--beta' is not of the form --key=value"),
        ("beta: 0.1", ["--beta=low"], "'--beta=low': 'low' is no float"),
    ],
)
def test_what_is_no_released_command_line_is_refused(tmp_path, capsys, content, flags, message):
    file = tmp_path / "recipe.yaml"
    file.write_text(content)
    assert main(["translate", str(file), *flags]) == 2
    assert message in capsys.readouterr().err


def test_translate_explains_itself(prints, capsys):
    assert prints("translate", "--help").startswith("usage: mmpo translate RECIPE.yaml")
    for words in ([], ["recipe.txt"]):
        assert main(["translate", *words]) == 2
        assert "usage: mmpo translate RECIPE.yaml" in capsys.readouterr().err
    assert main(["translate", "none.yaml"]) == 2
    assert "none.yaml: cannot be read as YAML" in capsys.readouterr().err


@settings(max_examples=40)
@example("données/paires.jsonl")
@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(), st.lists(st.text())))
def test_any_plain_value_can_be_written_as_a_word(value):
    word = as_word("trainer.x", value)
    words = [word, "model=tiny", "output_dir=a", "target.gamma=null"]
    found = compose("reproalign.mmpo", "train", "reproalign.mmpo.config:PreferenceConfig", words, foreign=False)
    assert found.config["trainer"]["x"] == value


@pytest.mark.parametrize(
    "path", ["données dir/mes paires.jsonl", "données.jsonl", "a b.jsonl", "it's.jsonl", "(1).jsonl", "x,y.jsonl"]
)
def test_a_path_needs_no_second_quotes(path):
    words = [f"data.sets.own.path={path}", "model.name=tiny:llama", "target.gamma=null", "output_dir=a b"]
    found = compose("reproalign.mmpo", "train", "reproalign.mmpo.config:PreferenceConfig", words)
    assert (found.config["data"]["sets"]["own"]["path"], found.config["output_dir"]) == (path, "a b")
