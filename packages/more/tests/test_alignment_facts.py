"""The published alignment: what its recipes come to, without training, against the facts in ``paper.yaml``."""

from __future__ import annotations

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, TrainingArguments

from reproalign.common.command.recipes import read_headers
from reproalign.common.generation.samples import read_selected
from reproalign.common.models.tiny import tiny_folder
from reproalign.common.models.tiny_tokenizers import tiny_tokenizer
from reproalign.common.testing import assert_facts, launch_facts, read_facts, recipe_config, refusal
from reproalign.common.testing.facts import scheduled_rates
from reproalign.common.training.sft import IGNORED, tokenize_responses
from reproalign.more.cli import APP, main
from reproalign.more.study.results import ResultKey, published_results

FACTS = read_facts("reproalign.more")
HEADERS = read_headers("reproalign.more")
ALIGNED = sorted(name for name in HEADERS if name.startswith("alpaca-7b-align-"))
QUERIES = 80_000  # how many there were is not stated; the facts are of so many
MODELS = [(base, scheme) for base in ("pythia-1.4b", "pythia-2.8b", "llama-2-7b") for scheme in ("more", "multitask")]


@pytest.mark.parametrize("name", [*ALIGNED, "alpaca-7b-sft"])
def test_rejection_sampling_fine_tuning_is_the_published_launch(name):
    config = recipe_config(APP, f"experiment={name}")
    stated = FACTS["alpaca-7b-align"]
    facts = launch_facts(config)
    steps = math.ceil(QUERIES / facts["rows_per_step"]) * facts["epochs"]
    facts |= {
        "steps_per_epoch": steps // facts["epochs"],
        "ticks": steps,
        "rates_at": scheduled_rates(
            TrainingArguments(
                output_dir="x",
                **{key: config.trainer[key] for key in ("learning_rate", "lr_scheduler_type", "warmup_steps")},
            ),
            steps,
            stated["rates_at"].value,
        ),
        "max_length": config.max_length,
        "loss_mean": config.loss_mean,
        "layout": config.layout,
        "held_out": int(config.eval_fraction * QUERIES),
        "dropout": 0.0,
        "order": "shuffled",
    }
    assert_facts(stated, facts, rel=1e-4)
    assert config.trainer["save_strategy"] == "epoch"
    assert config.trainer["eval_strategy"] == "no"


@pytest.mark.parametrize("name", ["alpaca-7b-sample", "alpaca-7b-answers"])
def test_sampling_is_the_published_one(name):
    config = recipe_config(APP, f"experiment={name}")
    names = ("n", "max_new_tokens", "temperature", "top_p", "top_k")
    derived = {key: getattr(config, key) for key in names}
    assert_facts(FACTS[name], derived | {"processes": config.launch.processes, "weights": config.model.dtype})


def test_scoring_pools_as_the_release_does_and_judging_follows_its_rules():
    scoring = recipe_config(APP, "experiment=alpaca-7b-score")
    assert (scoring.variant, scoring.model.pooling) == ("released", "average")
    judging = recipe_config(APP, "experiment=alpaca-7b-win-rate")
    assert (judging.variant, judging.template, judging.judge.parallel) == ("released", "helpful", 32)


@pytest.mark.parametrize(("base", "scheme"), MODELS)
def test_each_reward_model_of_table_1_has_a_recipe_that_expects_its_numbers(base, scheme):
    expected = HEADERS[f"alpaca-7b-align-{base}-{scheme}"]["expected"]
    for domain in ("helpful", "harmless"):
        value = published_results()[ResultKey(base, f"rjs_{scheme}", domain, "answer_perplexity")].value
        assert f"{value:.2f} ({domain})" in expected
    rates = [
        published_results()[ResultKey(base, "more_against_multitask", "hh", f"gpt4_{name}")] for name in ("win", "tie")
    ]
    assert "/".join(f"{100 * rate.value:.0f}" for rate in rates) in expected


# the loss


def test_the_loss_of_a_step_is_the_mean_of_its_tokens_or_of_its_rows(tmp_path):
    rows = [
        {"chosen": "\n\nHuman: hello\n\nAssistant: one"},
        {"chosen": "\n\nHuman: hello\n\nAssistant: two and two makes four, as everyone knows"},
    ]
    path = tmp_path / "chosen.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["align", "model=tiny", f"selected={path}", "layout=transcript", "trainer.max_steps=1"]
    words += ["trainer.per_device_train_batch_size=1", "trainer.gradient_accumulation_steps=2"]
    words += ["trainer.logging_steps=1", "trainer.save_strategy=no"]
    losses = {}
    for mean in ("tokens", "examples"):
        assert main([*words, f"loss_mean={mean}", f"output_dir={tmp_path / mean}"]) == 0
        logged = [json.loads(line) for line in (tmp_path / mean / "metrics.jsonl").read_text().splitlines()]
        losses[mean] = next(row["loss"] for row in logged if "loss" in row)
    tokens = tokenize_responses(read_selected(path), tiny_tokenizer(), layout="transcript", max_length=768)
    counts = [sum(label != IGNORED for label in row["labels"]) for row in tokens]
    assert counts[1] > 3 * counts[0]
    model = AutoModelForCausalLM.from_pretrained(tiny_folder("llama"), dtype=torch.float32)
    with torch.no_grad():
        each = [
            model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss.item()
            for row in tokens
        ]
    assert losses["examples"] == pytest.approx(sum(each) / 2, rel=1e-3)
    weighted = sum(count * loss for count, loss in zip(counts, each, strict=True)) / sum(counts)
    assert losses["tokens"] == pytest.approx(weighted, rel=1e-3)


def test_a_mean_over_rows_needs_one_row_per_device(tmp_path, capsys):
    words = ["align", "model=tiny", "selected=x", "loss_mean=examples", f"output_dir={tmp_path / 'out'}"]
    assert "needs trainer.per_device_train_batch_size=1" in refusal("more-rm", main, words, capsys)
    assert "loss_mean" in refusal("more-rm", main, [*words[:3], "loss_mean=rows", *words[4:]], capsys)
