"""The trainer of unpaired feedback against brute force: log-probs, KTO's KL, cut batches, absent classes, caches."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import TrainingArguments

from reproalign.common.config.model import LogprobsConfig
from reproalign.common.evaluation.unpaired import roc_auc, unpaired_metrics
from reproalign.common.launch.ending import end_after_leaving, leave
from reproalign.common.models.tiny import tiny_model
from reproalign.common.models.value_head import attach_value_head
from reproalign.common.text.collate import UnpairedCollator
from reproalign.common.training.collecting import CollectingTrainer
from reproalign.common.training.examples import ExampleTrainer, by_row
from reproalign.common.training.hold_reference import add_cached_token_logps
from reproalign.common.training.objective import Examples, ExampleScores, Needs, Objective
from reproalign.common.training.reference import AdapterDisabledReference, CachedReference, FrozenReference, Reference

BETA = 0.3


@dataclass(frozen=True)
class KTO(Objective):
    """KTO with either form of the KL, written out."""

    tokenwise: bool = False
    needs = Needs("examples", mismatched=True)

    def __call__(self, batch: Examples) -> ExampleScores:
        kl = 0.0 if batch.kl is None else batch.tokenwise_kl if self.tokenwise else batch.kl
        signs = torch.where(batch.desirable, 1.0, -1.0)
        losses = 1 - torch.sigmoid(signs * BETA * (batch.log_ratios - kl))
        return ExampleScores(losses, batch.log_ratios.detach(), {"ratio": batch.log_ratios})


def rows(labels: list[bool], *, mismatched: bool = True, seed: int = 0) -> list[dict[str, Any]]:
    rng = random.Random(seed)

    def ids(count: int) -> list[int]:
        return [rng.randrange(6, 500) for _ in range(count)]

    prompts = [ids(rng.randrange(1, 6)) for _ in labels]
    completions = [ids(rng.randrange(1, 9)) for _ in labels]
    result = []
    for index, label in enumerate(labels):
        row = {
            "input_ids": prompts[index] + completions[index],
            "prompt_length": len(prompts[index]),
            "label": label,
        }
        if mismatched:
            row["KL_input_ids"] = prompts[index] + completions[(index + 1) % len(labels)]
            row["KL_prompt_length"] = len(prompts[index])
        result.append(row)
    return result


def trainer(
    folder: Path,
    examples: list[dict[str, Any]],
    *,
    objective: Objective = KTO(),
    model: nn.Module | None = None,
    reference: Reference | None = None,
    kl_batch: str = "effective",
    **arguments: Any,
) -> ExampleTrainer:
    settings = {
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "learning_rate": 0.5,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "max_steps": 3,
        "logging_steps": 1,
        **arguments,
    }
    return ExampleTrainer(
        objective=objective,
        model=tiny_model(seed=1) if model is None else model,
        reference=FrozenReference(tiny_model(seed=2)) if reference is None else reference,
        kl_batch=kl_batch,
        args=TrainingArguments(
            output_dir=str(folder),
            use_cpu=True,
            report_to=[],
            remove_unused_columns=False,
            save_strategy="no",
            disable_tqdm=True,
            **settings,
        ),
        train_dataset=Dataset.from_list(examples),
        data_collator=UnpairedCollator(0),
    )


def run(training: ExampleTrainer) -> list[dict[str, float]]:
    training.train()
    return [log for log in training.state.log_history if "loss" in log]


def weights(training: ExampleTrainer) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in training.model.parameters()])


@torch.no_grad()
def token_logps(model: nn.Module, ids: list[int], start: int) -> Tensor:
    """One row alone, with full logits."""
    tokens = torch.tensor([ids])
    logps = model(input_ids=tokens).logits.log_softmax(-1)[0, :-1].gather(1, tokens[0, 1:, None])[:, 0]
    return logps[max(start - 1, 0) :]


def brute_force(examples: list[dict[str, Any]]) -> dict[str, Any]:
    policy, reference = tiny_model(seed=1), tiny_model(seed=2)

    def ratios(prefix: str) -> list[Tensor]:
        found = []
        for row in examples:
            place = row[f"{prefix}input_ids"], row[f"{prefix}prompt_length"]
            found.append(token_logps(policy, *place) - token_logps(reference, *place))
        return found

    mismatched = ratios("KL_")
    return {
        "rewards": torch.stack([values.sum() for values in ratios("")]),
        "kl": max(0.0, torch.stack([values.sum() for values in mismatched]).mean().item()),
        "tokenwise": torch.stack([values.clamp(min=0).max() for values in mismatched]),
    }


def test_the_collator_marks_completions_of_both_kinds():
    batch = UnpairedCollator(9)(
        [
            {"input_ids": [1, 2, 3], "prompt_length": 1, "label": True, "KL_input_ids": [1, 4], "KL_prompt_length": 1},
            {"input_ids": [5, 6], "prompt_length": 1, "label": 0, "KL_input_ids": [5, 2, 3, 7], "KL_prompt_length": 2},
        ]
    )
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[1, 2, 3], [5, 6, 9]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
        "completion_mask": [[0, 1, 1], [0, 1, 0]],
        "label": [True, False],
        "KL_input_ids": [[1, 4, 9, 9], [5, 2, 3, 7]],
        "KL_attention_mask": [[1, 1, 0, 0], [1, 1, 1, 1]],
        "KL_completion_mask": [[0, 1, 0, 0], [0, 0, 1, 1]],
    }


@pytest.mark.parametrize("tokenwise", [False, True])
def test_a_micro_batch_by_brute_force(tmp_path, tokenwise):
    examples = rows([True, False, True, True], seed=3)
    training = trainer(tmp_path, examples)
    training.objective = KTO(tokenwise)
    expected = brute_force(examples)
    assert expected["kl"] > 0
    loss, result = training.compute_loss(training.model, training.data_collator(examples), return_outputs=True)
    torch.testing.assert_close(result.rewards, expected["rewards"], atol=1e-4, rtol=1e-4)
    signs = torch.tensor([1.0, -1.0, 1.0, 1.0])
    kl = expected["tokenwise"] if tokenwise else expected["kl"]
    losses = 1 - torch.sigmoid(signs * BETA * (expected["rewards"] - kl))
    torch.testing.assert_close(result.losses, losses, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(loss, losses.mean(), atol=1e-5, rtol=1e-4)
    assert float(result.metrics["kl"]) == pytest.approx(expected["kl"], rel=1e-4)
    assert not result.metrics["kl"].requires_grad


def test_per_token_values_are_laid_out_by_row():
    assert by_row(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1, 0, 2])).tolist() == [[1, 0], [0, 0], [2, 3]]
    assert by_row(torch.zeros(0), torch.tensor([0, 0])).shape == (2, 1)


def test_order_and_padding_change_nothing(tmp_path):
    examples = rows([True, False, True, False])
    training = trainer(tmp_path, examples)
    collate = UnpairedCollator(0, pad_to_multiple_of=32)
    with torch.no_grad():
        plain = training.micro_batch(training.model, training.data_collator(examples))
        padded = training.micro_batch(training.model, collate(examples[::-1]))
    torch.testing.assert_close(plain.losses, padded.losses.flip(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(plain.rewards, padded.rewards.flip(0), atol=1e-4, rtol=1e-5)


def test_two_micro_batches_are_one_batch(tmp_path):
    """The KL is of all micro-batches of the step; taken of each alone it gives another run."""
    examples = rows([True, True, False, False, True, False, True, True])
    whole = trainer(tmp_path, examples)
    cut = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    parts, alone = trainer(tmp_path, examples, **cut), trainer(tmp_path, examples, kl_batch="process", **cut)
    logs, cut_logs, _ = run(whole), run(parts), run(alone)
    for log, other in zip(logs, cut_logs, strict=True):
        names = [name for name in log if name.split("/")[0] in ("loss", "kl", "ratio", "rewards", "logps")]
        assert {name: other[name] for name in names} == pytest.approx({name: log[name] for name in names}, abs=1e-4)
    torch.testing.assert_close(weights(parts), weights(whole), atol=1e-5, rtol=0)
    assert (weights(alone) - weights(whole)).abs().max() > 1e-4
    assert logs[0]["kl"] > 0


def test_an_absent_class_leaves_its_metrics_out(tmp_path):
    both, only = rows([True, True, False, False]), rows([True, True, True, True])
    training = trainer(tmp_path, both, per_device_train_batch_size=1, gradient_accumulation_steps=4, max_steps=1)
    log = run(training)[0]
    expected = brute_force(both)["rewards"]
    assert log["rewards/desirable"] == pytest.approx(float(expected[:2].mean()), rel=1e-4)
    assert log["rewards/undesirable"] == pytest.approx(float(expected[2:].mean()), rel=1e-4)
    assert log["rewards/margins"] == pytest.approx(float(expected[:2].mean() - expected[2:].mean()), abs=1e-3)
    alone = run(trainer(tmp_path, only, max_steps=1))[0]
    assert np.isfinite(alone["loss"])
    assert "rewards/desirable" in alone
    assert not {"rewards/undesirable", "rewards/margins", "logps/undesirable"} & alone.keys()


def test_without_mismatched_rows_there_is_no_kl(tmp_path):
    log = run(trainer(tmp_path, rows([True, False, True, False], mismatched=False), max_steps=1))[0]
    assert "kl" not in log


def test_evaluation_reports_means_their_difference_and_auc(tmp_path):
    examples = rows([True, False, True, True, False, True])
    training = trainer(tmp_path, examples)
    rewards, labels = training.rewards(Dataset.from_list(examples))
    expected = brute_force(examples)["rewards"].double().numpy()
    assert rewards == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert labels.tolist() == [1, 0, 1, 1, 0, 1]
    metrics = training.evaluate(Dataset.from_list(examples))
    logged = training.state.log_history[-1]
    for name, value in unpaired_metrics(expected, labels).items():
        assert logged[f"eval_{name}"] == pytest.approx(value, rel=1e-4, abs=1e-4)
    assert metrics["eval_auc"] == logged["eval_auc"]
    training.evaluate(Dataset.from_list(rows([True, True])))
    assert not {"eval_auc", "eval_rewards/margins"} & training.state.log_history[-1].keys()


@pytest.mark.parametrize("mismatched", [True, False])
def test_cached_references_agree_with_the_model(tmp_path, mismatched):
    examples = rows([True, False, True, False, True], mismatched=mismatched)
    calls = []

    def load_model() -> nn.Module:
        calls.append(1)
        return tiny_model(seed=2)

    cached = Dataset.from_list(examples)
    for _ in range(2):
        with_logps = add_cached_token_logps(
            cached,
            load_model=load_model,
            weights="w",
            collator=UnpairedCollator(0),
            cache_dir=tmp_path,
            batch_size=2,
            logprobs=LogprobsConfig(),
            label="examples",
        )
    assert len(calls) == 1
    live = trainer(tmp_path, examples)
    stored = trainer(tmp_path, examples, reference=CachedReference())
    with torch.no_grad():
        expected = live.micro_batch(live.model, live.data_collator(examples))
        found = stored.micro_batch(stored.model, stored.data_collator(list(with_logps)))
    torch.testing.assert_close(found.losses, expected.losses, atol=1e-5, rtol=1e-5)
    assert ("kl" in found.metrics) is mismatched
    batch = stored.data_collator(list(with_logps))
    per_token = CachedReference().completion_logps(stored.model, batch)["per_token"]
    single = [token_logps(tiny_model(seed=2), row["input_ids"], row["prompt_length"]) for row in examples]
    torch.testing.assert_close(per_token, torch.cat(single), atol=1e-5, rtol=1e-5)


def test_the_policy_without_its_adapters_answers_for_mismatched_rows_too(tmp_path):
    examples = rows([True, False])
    base = tiny_model(seed=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    training = trainer(tmp_path, examples, model=model, reference=AdapterDisabledReference())
    batch = training.data_collator(examples)
    for prefix in ("", "KL_"):
        per_token = training.reference.completion_logps(model, batch, prefix)["per_token"]
        plain = tiny_model(seed=1)
        expected = [token_logps(plain, row[f"{prefix}input_ids"], row[f"{prefix}prompt_length"]) for row in examples]
        torch.testing.assert_close(per_token, torch.cat(expected), atol=1e-5, rtol=1e-5)


def test_a_value_head_answers_in_the_trainer(tmp_path):
    model = tiny_model(seed=1)
    attach_value_head(model)
    seen: list[Examples] = []

    class Valued(KTO):
        def __call__(self, batch: Examples) -> ExampleScores:
            seen.append(batch)
            scores = super().__call__(batch)
            return ExampleScores(scores.losses + batch.values.square().sum(1), scores.rewards)

    run(trainer(tmp_path, rows([True, False, True, False]), objective=Valued(), model=model, max_steps=1))
    assert seen[0].values.shape == seen[0].token_logps.shape == seen[0].mask.shape
    assert (seen[0].values[seen[0].mask] != 0).all()
    assert (seen[0].values[~seen[0].mask] == 0).all()
    torch.testing.assert_close(seen[0].token_logps.sum(1), seen[0].logps)


def test_deepspeed_does_not_round_the_batch(tmp_path):
    training = trainer(tmp_path, rows([True, False]))
    training.is_deepspeed_enabled = True
    assert training._prepare_inputs({"ref_logps": torch.tensor([-1.23456789])})["ref_logps"].dtype == torch.float32


def test_metrics_are_averaged_over_their_entries():
    collecting = CollectingTrainer.__new__(CollectingTrainer)
    collecting._collected = {"train": {name: torch.zeros(2) for name in ("a", "b")}}
    collecting.accelerator = type("One", (), {"device": "cpu", "reduce": lambda self, value, reduction: value})()
    collecting.collect("train", {"a": torch.tensor([1.0, 2.0]), "b": torch.zeros(0)})
    collecting.collect("train", {"a": torch.tensor(9.0), "b": torch.zeros(0)})
    assert collecting._drain("train") == {"a": 4.0}


@given(
    scores=st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=30).filter(
        lambda found: len({label for _, label in found}) == 2
    )
)
def test_auc_by_counting_couples(scores):
    positives = [score for score, label in scores if label]
    negatives = [score for score, label in scores if not label]
    wins = [(a > b) + 0.5 * (a == b) for a in positives for b in negatives]
    assert roc_auc([score for score, _ in scores], [label for _, label in scores]) == pytest.approx(np.mean(wins))


def test_auc_needs_both_classes():
    with pytest.raises(ValueError, match="positive and negative"):
        roc_auc([1.0], [True])
    assert unpaired_metrics([1.0], [True]) == {"rewards/desirable": 1.0}


LABELS = [True, True, False, True, False, False, True, True]  # with two processes one class is missing somewhere


def distributed_run(folder: Path) -> dict[str, Any]:
    training = trainer(folder, rows(LABELS), per_device_train_batch_size=2)
    assert training.args.world_size == 2
    logs = run(training)
    rewards, _ = training.rewards(Dataset.from_list(rows(LABELS)))
    return {"logs": logs, "weights": weights(training).tolist(), "rewards": rewards.tolist()}


@pytest.mark.distributed
def test_two_processes_estimate_the_kl_of_one(tmp_path):
    single = trainer(tmp_path, rows(LABELS))
    logs = run(single)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, __file__, str(tmp_path)], capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr[-5000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert logs[0]["kl"] > 0
    for log, other in zip(logs, found["logs"], strict=True):
        names = [name for name in log if name.split("/")[0] in ("loss", "kl", "ratio", "rewards", "logps")]
        assert {name: other[name] for name in names} == pytest.approx({name: log[name] for name in names}, abs=1e-4)
    torch.testing.assert_close(torch.tensor(found["weights"]), weights(single), atol=1e-5, rtol=0)
    rewards, _ = single.rewards(Dataset.from_list(rows(LABELS)))
    assert found["rewards"] == pytest.approx(rewards.tolist(), abs=1e-3)


if __name__ == "__main__":
    end_after_leaving()
    result = distributed_run(Path(sys.argv[1]))
    if torch.distributed.get_rank() == 0:
        (Path(sys.argv[1]) / "found.json").write_text(json.dumps(result))
    leave()
