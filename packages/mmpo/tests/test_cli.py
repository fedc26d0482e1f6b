"""What mmpo's command tells of its own, and the authors' command lines in its words."""

from __future__ import annotations

import shlex

import pytest
import yaml

from reproalign.common.command.completion import fitting
from reproalign.common.options.keys import known_keys
from reproalign.common.options.load import load_object
from reproalign.common.testing import composed
from reproalign.mmpo.cli import APP, main
from reproalign.mmpo.released_cli import translate

SMALLEST = {
    "sft": ["experiment=smoke-sft"],
    "reward": ["experiment=smoke-reward"],
    "evaluate": ["model=tiny", "data=demo", "output_dir=out"],
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
    "output_dir": "runs/mmpo/gemma-7b-ultrafeedback",
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
    "output_dir": "runs/mmpo/gemma-7b-reward",
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


def test_the_shell_is_offered_the_recipes_of_the_verb():
    assert fitting(APP, ["train"], "experiment=smoke") == ["experiment=smoke "]
    assert fitting(APP, ["reward"], "experiment=smoke") == ["experiment=smoke-reward "]


def test_of_two_verbs_with_one_name_a_key_decides(prints):
    schema = next(verb.schema for verb in APP.verbs if verb.when == "suite")
    words = set(prints("evaluate", "suite=ama", "--help").split())
    assert set(known_keys(load_object(schema))) <= words
    assert "rewardbench" not in words
    suite = ["suite=dtm", "model=tiny", "output_dir=out", "suite.limit=3"]
    assert yaml.safe_load(prints("evaluate", *suite, "--cfg"))["suite"]["limit"] == 3


@pytest.mark.parametrize("verb", SMALLEST)
def test_a_dry_run_writes_nothing(prints, tmp_path, monkeypatch, verb):
    monkeypatch.chdir(tmp_path)
    assert prints(verb, *SMALLEST[verb], "--dry-run").startswith(f"mmpo {verb}")
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize(
    ("verb", "recipe", "flags", "packaged"),
    [
        ("train", POLICY_RECIPE, ["--bt_beta=1.1"], "gemma-7b-ultrafeedback"),
        ("train", POLICY_RECIPE, ["--output_dir=runs/mmpo/gemma-7b-ultrafeedback-dpo"], "gemma-7b-ultrafeedback-dpo"),
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
