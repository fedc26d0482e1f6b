"""Every recipe composes, says what it must, and has the batch of four processes, four pairs, four micro-batches."""

from __future__ import annotations

import pytest

from reproalign.common.recipes import REQUIRED, effective_batch, read_headers
from reproalign.common.records.paper import load_paper
from reproalign.common.testing import composed
from reproalign.radpo.cli import APP, main
from reproalign.radpo.train import check_loss, starting_weights

HEADERS = read_headers("reproalign.radpo")
PUBLISHED = [name for name in HEADERS if not name.startswith(("smoke", "smollm2"))]
PAPER = load_paper("reproalign.radpo")


@pytest.mark.parametrize("name", HEADERS)
def test_a_recipe_is_complete_and_its_batch_adds_up(name):
    header, config = HEADERS[name], composed(APP, f"experiment={name}")
    assert not [key for key in REQUIRED if not header.get(key)]
    assert header["command"].startswith(f"radpo {header['verb']} experiment={name}")
    assert config["launch"]["processes"] == int(header["processes"])
    assert effective_batch(config, int(header["processes"])) == int(header["global_batch"])
    assert config["output_dir"] == f"runs/{name}"


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_hyper_parameters(name):
    config, family = composed(APP, f"experiment={name}"), name.rsplit("-", 1)[0]
    trainer, loss = config["trainer"], config["loss"]
    assert (trainer["learning_rate"], trainer["num_train_epochs"], trainer["max_grad_norm"]) == (5e-6, 1, 5.0)
    assert (config["seed"], config["warmup_steps"]) == (1, 150)
    assert (config["data"]["max_length"], config["data"]["max_prompt_length"]) == (512, 256)
    assert (config["launch"]["strategy"], config["launch"]["processes"]) == ("fsdp", 4)
    assert (config["model"]["dtype"], trainer["bf16"]) == ("bfloat16", False)
    assert trainer.get("gradient_checkpointing", False) == ("pythia" not in name)
    assert config["variant"] == ("paper" if "erm" in name else "released")
    assert loss["beta"] == 0.1
    assert loss["alpha"] == 0.5
    if loss["name"] == "sft":
        assert config["model"]["load_from"] is None
    else:
        start = next(
            other for other in PUBLISHED if name.startswith(other.removesuffix("sft")) and other.endswith("sft")
        )
        output_dir = composed(APP, f"experiment={start}")["output_dir"]
        assert config["model"]["load_from"] == f"{output_dir}/model", family
    if loss["name"] == "ra-dpo" and "erm" not in name:
        assert name.endswith(f"{loss['confidence_level']:.2f}")
    assert loss["second_form"] == ("dpo2" in name)


def test_every_published_run_has_a_recipe():
    run = PAPER["published_runs"]["hh-pythia-1.4b"]
    losses = [name for name in run["losses"] if not name.startswith("ra-dpo")]
    losses += [f"ra-dpo{n}-{level:.2f}" for n in (1, 2) for level in run["confidence_level"]]
    assert {f"hh-pythia-1.4b-{loss}" for loss in ("sft", *losses)} <= HEADERS.keys()
    for family in PAPER["published_runs"]:
        assert f"{family}-sft" in HEADERS


@pytest.mark.parametrize("model", ["pythia", "gpt2-large", "llama", "mistral", "gemma", "qwen", "default"])
def test_activations_are_recomputed_as_in_the_release(model):
    trainer = composed(APP, f"model={model}", "model.name=a/b", "output_dir=x", verb="train")["trainer"]
    assert trainer.get("gradient_checkpointing", False) == (model not in ("pythia", "default"))


def test_small_recipes_stay_one_process_where_training_shards():
    for name in HEADERS.keys() - set(PUBLISHED):
        assert composed(APP, f"experiment={name}")["launch"]["strategy"] == "single"
    assert composed(APP, "model=pythia", "output_dir=x", verb="train")["launch"]["strategy"] == "auto"


@pytest.mark.parametrize("name", ["sft", "csft", "dpo", "cdpo", "slic", "kto", "kto-zero", "ppo", "tdpo", "ra-dpo"])
def test_every_loss_of_the_release_composes_with_its_published_parameters(name):
    from omegaconf import OmegaConf

    from reproalign.radpo.config import LossConfig

    words = [f"loss={name}", "model=pythia", "data=hh", "model.load_from=runs/sft/model", "output_dir=x"]
    config = composed(APP, *words, verb="train")
    loss = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(LossConfig), config["loss"]))
    check_loss(loss, "paper")
    assert loss.beta == (1.0 if name == "slic" else 0.1)
    assert starting_weights is not None


def test_a_recipe_is_shown_with_command_and_bibtex(capsys):
    assert main(["recipes", "hh-pythia-1.4b-ra-dpo2-0.98"]) == 0
    printed = capsys.readouterr().out
    assert "radpo train experiment=hh-pythia-1.4b-ra-dpo2-0.98" in printed
    assert "@misc{zhang2025riskaware" in printed
