"""One λ and one loss per optimiser step, however its items are dealt into micro-batches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForSequenceClassification, TrainingArguments

from reproalign.common.reward.model import install_rewards
from reproalign.common.reward.rules import RewardRules
from reproalign.more.balance import Balancer
from reproalign.more.balanced import MoreTrainer
from reproalign.more.cli import main
from reproalign.more.config import WeightsConfig
from reproalign.more.loss import DomainSums
from reproalign.more.released import PAPER, rules_of
from reproalign.more.trainer import item_rewards

DOMAINS = ["a", "b", "c"]
QUICK = ["train", "experiment=smoke", "trainer.max_steps=3", "trainer.save_strategy=no", "trainer.eval_strategy=no"]


def logged(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = ("loss", "lambda", "accuracy", "grad_norm")
    return [{k: v for k, v in row.items() if k.split("/")[0] in names} for row in rows if "loss" in row]


@pytest.mark.parametrize(
    "words",
    [
        [],
        pytest.param(["weights.normalize=l2", "weights.alpha=0.5", "data.resampling=false"], marks=pytest.mark.slow),
        pytest.param(["method=multitask", "data.resampling=false"], marks=pytest.mark.slow),
    ],
    ids=["more", "mixture", "multitask"],
)
def test_accumulation_changes_nothing(tmp_path, words) -> None:
    """Four micro-batches of one row and one of four rows: the same λ, loss and weights of the model."""
    for name, rows, accumulation in (("whole", 4, 1), ("parts", 1, 4)):
        batch = [f"trainer.per_device_train_batch_size={rows}", f"trainer.gradient_accumulation_steps={accumulation}"]
        assert main([*QUICK, *batch, *words, f"output_dir={tmp_path / name}"]) == 0
    whole, parts = (logged(tmp_path / name) for name in ("whole", "parts"))
    assert len(whole) == len(parts) == 3
    for expected, found in zip(whole, parts, strict=True):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    a, b = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.allclose(a[name], b[name], rtol=0, atol=1e-4) for name in a)


def trainer(folder: Path, variant: str = "paper", **options) -> MoreTrainer:
    """MORE on a tiny Llama whose attention drops out."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_labels=1,
        pad_token_id=0,
        attention_dropout=0.5,
    )
    model = LlamaForSequenceClassification(config)
    install_rewards(model, RewardRules(), 0)
    arguments = TrainingArguments(str(folder), use_cpu=True, report_to=[], remove_unused_columns=False)
    common = {"model": model, "args": arguments, "domains": DOMAINS, "held_out": {}, "rules": rules_of(variant)}
    return MoreTrainer(weights=WeightsConfig(**options), grouped=True, **common)


def batches(count: int, *, uneven: bool = False) -> list[dict[str, torch.Tensor]]:
    """Micro-batches of one pair a domain; ``uneven``: the last has two more of the last domain."""
    generator, made = torch.Generator().manual_seed(1), []
    for number in range(count):
        domain = torch.tensor([0, 1, 2, 2, 2] if uneven and number == count - 1 else [0, 1, 2])
        rows = 2 * len(domain)
        ids = torch.randint(1, 50, (rows, 9), generator=generator)
        scores = torch.tensor([[1.0, 0.0]] * len(domain))
        common = {"attention_mask": torch.ones_like(ids), "slot": torch.arange(rows)}
        made.append({"input_ids": ids, "scores": scores, "domain": domain, **common})
    return made


def test_the_weights_are_those_of_the_pass_that_trains(tmp_path) -> None:
    """The look ahead draws the same dropout masks, and moves neither the random state nor the momentum further."""
    one = trainer(tmp_path)
    model, parts = one.model, batches(3)
    torch.manual_seed(7)
    step = one.look_ahead(model, parts)
    sums = [one.local_sums(*reversed(item_rewards(model, batch)), batch).flat() for batch in parts]
    total = DomainSums.from_flat(torch.stack(sums).sum(0).detach())
    again = Balancer(WeightsConfig(), DOMAINS, torch.zeros(3, 16), PAPER).step(total, grouped=True)
    assert torch.equal(step.weights, again.weights)
    torch.manual_seed(8)
    assert not torch.equal(one.look_ahead(model, parts).weights, step.weights)  # dropout does act


def test_a_step_s_loss_is_eq_7_over_all_its_micro_batches(tmp_path) -> None:
    """Parts add up to Σ λ_k L_k, each L_k a mean over the whole step's pairs."""
    one = trainer(tmp_path, rule="uniform")
    one.model.eval()
    parts = batches(2, uneven=True)
    losses = torch.zeros(3)
    for batch in parts:
        rewards, _ = item_rewards(one.model, batch)
        margins = rewards[:, 0] - rewards[:, 1]
        losses = losses.index_add(0, batch["domain"], torch.nn.functional.softplus(-margins.detach()))
    expected = (losses / torch.tensor([2.0, 2.0, 4.0])).mean()
    one.current = one.look_ahead(one.model, parts)
    assert one.current.pairs.tolist() == [4, 4, 8]
    found = 0.0
    for batch in parts:
        rewards, features = item_rewards(one.model, batch)
        loss, _ = one.training_loss(features, rewards, batch, one.local_sums(features, rewards, batch))
        found += loss.item()
    assert found == pytest.approx(expected.item(), rel=1e-5)
