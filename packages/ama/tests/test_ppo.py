"""Runs of ``ama align ppo`` on tiny models: what is drawn, what is learned, what is kept, and going on from it."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from reproalign.ama.align.online import loop
from reproalign.ama.align.online.rollouts import Asker, Rollout, measure_rollouts
from reproalign.ama.align.online.update import make_experience
from reproalign.ama.cli import main
from reproalign.common.config.model import LogprobsConfig, ModelConfig, RewardModelConfig
from reproalign.common.config.text import TextConfig
from reproalign.common.logprobs.values import install_completion_values
from reproalign.common.models.load import load_causal_lm
from reproalign.common.models.tiny import tiny_model
from reproalign.common.models.tiny_tokenizers import tiny_tokenizer
from reproalign.common.models.value_head import attach_value_head
from reproalign.common.records import fingerprint_folder
from reproalign.common.reward.rules import RewardRules, scoring_rules, told_rules
from reproalign.common.reward.scorer import RewardScorer
from reproalign.common.testing import run_command
from reproalign.common.testing.tiny import tiny_reward_model
from reproalign.common.training.reference import FrozenReference

PROMPTS = [f"Question {number}: what is {number} plus {number}?" for number in range(12)]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> list[str]:
    """Prompts, and a reward that is the mean over tokens of w · norm(embedding): blocks that add nothing."""
    folder = tmp_path_factory.mktemp("inputs")
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in PROMPTS]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model: Any = tiny_reward_model(seed=1)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.score.weight.mul_(10)  # rewards that differ by about 1, as the values at first do
    reward = folder / "reward"
    model.save_pretrained(reward)
    tiny_tokenizer().save_pretrained(reward)
    note = RewardRules("average", layout="transcript", max_length=8, truncation_side="left").note()
    (reward / "reward.json").write_text(json.dumps(note))
    return [
        "align",
        "ppo",
        "model.name=tiny:llama",
        f"reward={reward}",
        f"prompts={folder}",
        "layout=transcript",
        "prompts_per_iteration=8",
        "update_batch_size=4",
        "max_new_tokens=8",
        "sampling_batch_size=4",
        "learning_rate=0.001",
        "reward_baseline=0",
    ]


@pytest.fixture(scope="module")
def trained(inputs, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "trained"
    assert main([*inputs, "iterations=3", f"output_dir={folder}"]) == 0
    return folder


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def logged(folder: Path, name: str) -> list[float]:
    return [json.loads(line)[name] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(folder.glob("*.safetensors")))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_keeps_model_iterations_samples_and_record(trained, inputs):
    names = {path.name for path in trained.iterdir()}
    assert {"model", "iteration-1", "iteration-2", "iteration-3", "checkpoint-2", "checkpoint-3"} <= names
    assert "checkpoint-1" not in names
    assert fingerprint_folder(trained / "model") == fingerprint_folder(trained / "iteration-3" / "model")
    _, loading = AutoModelForCausalLM.from_pretrained(trained / "iteration-2" / "model", output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert not [name for name in weights(trained / "model") if "v_head" in name]
    found = record(trained)
    assert found["metrics"]["iterations"] == 3
    assert found["metrics"]["reward_first"] == logged(trained, "reward")[0]
    assert {"policy", "reward", "model"} <= found["fingerprints"]["weights"].keys()
    assert (trained / "plots" / "training.png").stat().st_size > 5_000


def test_the_first_iteration_is_the_references(trained):
    assert logged(trained, "kl")[0] == 0.0
    assert logged(trained, "kl")[1] != 0.0
    assert logged(trained, "shaped_reward")[1] == pytest.approx(
        logged(trained, "reward")[1] - 0.1 * logged(trained, "kl")[1]
    )


def test_samples_carry_the_rewards_of_the_reward_model(trained, inputs):
    config = RewardModelConfig(name=inputs[3].partition("=")[2])
    scorer = RewardScorer(config, scoring_rules(config, told_rules(config, TextConfig(), None)), batch_size=3)
    samples = rows(trained / "samples" / "iteration-3.jsonl")
    assert len(samples) == 8
    dialogues = [[*row["prompt"], {"role": "assistant", "content": row["response"]}] for row in samples]
    assert scorer(dialogues) == pytest.approx([row["reward"] for row in samples], abs=1e-5)


@pytest.mark.slow
def test_the_reward_rises(inputs, tmp_path):
    """Without penalty, on a reward that every token earns a part of."""
    words = ["iterations=10", "prompts_per_iteration=128", "update_batch_size=32", "kl.coef=0", "lam=1"]
    words += ["learning_rate=0.003", "max_new_tokens=6", "save_every=10", "reward_baseline=null"]
    words += ["micro_batch_size=32", "sampling_batch_size=128", "scoring.batch_size=128"]
    assert main([*inputs, *words, f"output_dir={tmp_path / 'run'}"]) == 0
    rewards, errors = (logged(tmp_path / "run", name) for name in ("reward", "reward_stderr"))
    assert rewards[-1] - rewards[0] > 3 * (errors[0] + errors[-1])
    assert logged(tmp_path / "run", "entropy")[-1] < logged(tmp_path / "run", "entropy")[0]
    assert logged(tmp_path / "run", "kl")[-1] > 1.0
    assert logged(tmp_path / "run", "reward_baseline") == [rewards[0]] * 10


@pytest.mark.parametrize("moment", ["save_state", pytest.param("keep_iteration", marks=pytest.mark.slow)])
def test_stopped_in_an_iteration_and_resumed_gives_the_same_bits(moment, inputs, trained, tmp_path, monkeypatch):
    folder = tmp_path / "stopped"
    original = getattr(loop, moment)

    def dying(*given, **options):
        if any(getattr(value, "iteration", None) == 2 for value in given):
            raise KeyboardInterrupt
        original(*given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, moment, dying)
        assert main([*inputs, "iterations=3", f"output_dir={folder}"]) == 130
    assert main([*inputs, "iterations=3", f"output_dir={folder}"]) == 0
    assert record(folder)["resumed_from"] == "checkpoint-1"
    assert fingerprint_folder(folder / "model") == fingerprint_folder(trained / "model")
    assert weights(folder / "iteration-3" / "critic").keys() == {"v_head.summary.weight", "v_head.summary.bias"}
    for name, tensor in weights(trained / "iteration-3" / "critic").items():
        assert torch.equal(weights(folder / "iteration-3" / "critic")[name], tensor)
    assert record(folder)["metrics"] == record(trained)["metrics"]


def test_a_damaged_checkpoint_is_skipped_or_refused(inputs, trained, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    original = loop.save_state

    def dying(*given):
        original(*given)
        if given[2].iteration == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_state", dying)
        assert main([*inputs, "iterations=3", f"output_dir={folder}"]) == 130
    (folder / "checkpoint-2" / "optimizer.safetensors").write_bytes(b"")
    assert main([*inputs, "iterations=3", "on_bad_checkpoint=stop", f"output_dir={folder}"]) == 2
    assert "cannot resume" in capsys.readouterr().err
    assert main([*inputs, "iterations=3", f"output_dir={folder}"]) == 0
    assert fingerprint_folder(folder / "model") == fingerprint_folder(trained / "model")


def test_with_the_critic_alone_the_actor_keeps_its_bits(inputs, tmp_path):
    assert main([*inputs, "iterations=2", "critic_warmup=2", f"output_dir={tmp_path / 'run'}"]) == 0
    start = load_causal_lm(ModelConfig(name="tiny:llama")).state_dict()
    for name, tensor in weights(tmp_path / "run" / "model").items():
        assert torch.equal(tensor, start[name]), name
    critics = [weights(tmp_path / "run" / f"iteration-{number}" / "critic") for number in (1, 2)]
    assert not torch.equal(critics[0]["v_head.summary.weight"], critics[1]["v_head.summary.weight"])
    assert logged(tmp_path / "run", "kl") == [0.0, 0.0]


def test_a_restart_goes_on_from_an_iteration_with_a_fresh_critic_and_the_actor_frozen(inputs, trained, tmp_path):
    words = ["iterations=3", f"restart_from={trained / 'iteration-1'}", "critic_warmup=1"]
    assert main([*inputs, *words, f"output_dir={tmp_path / 'run'}"]) == 0
    assert logged(tmp_path / "run", "step") == [2, 3]
    # The same policy, prompts and noise, but another critic.
    assert rows(tmp_path / "run" / "samples" / "iteration-2.jsonl") == rows(trained / "samples" / "iteration-2.jsonl")
    first, second = trained / "iteration-1", tmp_path / "run" / "iteration-2"
    assert fingerprint_folder(second / "model") == fingerprint_folder(first / "model")
    assert fingerprint_folder(tmp_path / "run" / "model") != fingerprint_folder(first / "model")
    assert record(tmp_path / "run")["fingerprints"]["weights"]["restart"]
    assert logged(tmp_path / "run", "explained_variance")[0] != logged(trained, "explained_variance")[1]


def test_a_restart_with_the_kept_critic_sees_what_the_run_saw(inputs, trained, tmp_path):
    words = ["iterations=2", f"restart_from={trained / 'iteration-1'}", "restart_critic=kept"]
    assert main([*inputs, *words, f"output_dir={tmp_path / 'run'}"]) == 0
    assert logged(tmp_path / "run", "explained_variance")[0] == logged(trained, "explained_variance")[1]


LORA = ["model.lora.enabled=true", "model.lora.r=4", "learning_rate=0.01"]


@pytest.mark.parametrize("merge", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_adapters_are_trained_against_the_policy_without_them(inputs, tmp_path, merge):
    folder, again = tmp_path / "run", tmp_path / "again"
    words = [*LORA, f"model.lora.merge={str(merge).lower()}"]
    assert main([*inputs, *words, "iterations=2", f"output_dir={folder}"]) == 0
    assert logged(folder, "kl")[0] == 0.0
    assert logged(folder, "kl")[1] != 0.0
    assert (folder / "model" / "adapter_config.json").is_file() is not merge
    loaded = load_causal_lm(ModelConfig(name=str(folder / "model")), trainable=False).state_dict()
    start = load_causal_lm(ModelConfig(name="tiny:llama"), trainable=False).state_dict()
    changed = {name.rpartition(".layers.")[2][2:] for name in start if not torch.equal(loaded[name], start[name])}
    assert changed == {"self_attn.q_proj.weight", "self_attn.v_proj.weight"}
    more = ["iterations=2", f"restart_from={folder / 'iteration-1'}", f"output_dir={again}"]
    assert main([*inputs, *words, *more]) == 0
    assert rows(again / "samples" / "iteration-2.jsonl") == rows(folder / "samples" / "iteration-2.jsonl")


def test_epochs_and_rate_are_those_of_the_paper(inputs, tmp_path):
    for name, words, rate in (("whole", [], 1e-6), ("lora", ["model.lora.enabled=true"], 1e-5)):
        assert main([*inputs, *words, "learning_rate=null", "iterations=1", f"output_dir={tmp_path / name}"]) == 0
        assert logged(tmp_path / name, "learning_rate") == [rate]


def test_the_adaptive_controller_is_kept_with_the_run(inputs, tmp_path):
    words = ["kl.controller=adaptive", "kl.target=0.001", "kl.horizon=10", "iterations=3", "lr_schedule=linear"]
    assert main([*inputs, *words, f"output_dir={tmp_path / 'run'}"]) == 0
    kls, etas = logged(tmp_path / "run", "kl"), logged(tmp_path / "run", "kl_coef")
    for before, after, kl in zip(etas, etas[1:], kls, strict=False):
        error = min(max(kl / 0.001 - 1, -0.2), 0.2)
        assert after == pytest.approx(before * (1 + error * 8 / 10))
    assert logged(tmp_path / "run", "learning_rate") == pytest.approx([0.001, 0.001 * 2 / 3, 0.001 / 3])


def test_micro_batches_change_nothing(inputs, tmp_path):
    for name, words in (("one", ["micro_batch_size=1"]), ("all", ["micro_batch_size=4"])):
        words = [*words, "whitening=update", "iterations=1"]
        assert main([*inputs, *words, f"output_dir={tmp_path / name}"]) == 0
    left, right = (weights(tmp_path / name / "model") for name in ("one", "all"))
    for name, tensor in left.items():
        torch.testing.assert_close(right[name], tensor, atol=2e-5, rtol=1e-4)


def test_updates_beyond_the_threshold_are_skipped(inputs, tmp_path):
    words = ["ratio_threshold=1.0000001", "learning_rate=0.05", "iterations=1"]
    assert main([*inputs, *words, f"output_dir={tmp_path / 'run'}"]) == 0
    assert 0 < logged(tmp_path / "run", "skipped_updates")[0] < 4


def test_a_ratio_that_overflows_is_beyond_the_threshold(inputs, tmp_path, monkeypatch):
    def drawn_as_impossible(config, rollouts, **numbers):
        made = make_experience(config, rollouts, **numbers)
        logps = made.logps.clone()
        logps[0] -= 1000 * made.mask[0]
        return replace(made, logps=logps)

    monkeypatch.setattr(loop, "make_experience", drawn_as_impossible)
    assert main([*inputs, "iterations=1", f"output_dir={tmp_path / 'run'}"]) == 0
    assert logged(tmp_path / "run", "skipped_updates") == [2]  # the first response's mini-batch in each of two epochs
    assert all(map(math.isfinite, logged(tmp_path / "run", "policy_loss")))
    assert main([*inputs, "iterations=1", "ratio_threshold=null", f"output_dir={tmp_path / 'none'}"]) == 1


def test_log_probs_and_values_are_those_of_whole_logits():
    model = tiny_model(seed=3)
    torch.manual_seed(0)
    attach_value_head(model)
    install_completion_values(model)
    reference = FrozenReference(tiny_model(seed=4))
    reference.prepare(Accelerator(cpu=True), LogprobsConfig())
    nothing = torch.zeros(0)
    responses = [[7, 8, 9], [11], [12, 13, 14, 15, 2]]
    drawn = [Rollout(0, [5, 6, 7 + row], ids, "", True, 0.0, *[nothing] * 3) for row, ids in enumerate(responses)]
    for rollout in measure_rollouts(model, reference, drawn, pad_id=0, rows=2):
        ids = torch.tensor([rollout.prompt_ids + rollout.response_ids])
        place = slice(2, ids.shape[1] - 1)
        for one, found in ((model, rollout.logps), (reference.model, rollout.ref_logps)):
            logps = one(input_ids=ids).logits[0].log_softmax(-1)
            expected = logps[place].gather(1, ids[0, 3:, None])[:, 0]
            torch.testing.assert_close(found, expected.detach(), atol=1e-5, rtol=1e-5)
        states = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, place]
        torch.testing.assert_close(rollout.values, model.v_head(states).detach(), atol=1e-5, rtol=1e-5)
        assert rollout.kl == pytest.approx(float((rollout.logps - rollout.ref_logps).sum()))


def asker(**changes: Any) -> Asker:
    tokenizer = tiny_tokenizer()
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return Asker(tokenizer, ("\n\nHuman:",), frozenset({2}), 8)


def test_a_response_ends_where_the_policy_ended_it():
    tokenizer = tiny_tokenizer()
    word, stop = (tokenizer.encode(text, add_special_tokens=False) for text in (" yes", "\n\nHuman:"))
    one, same = asker(), asker(pad_token="</s>")
    assert (one.tokenizer.pad_token_id, same.tokenizer.pad_token_id) == (0, 2)
    for drawer, pad in ((one, 0), (same, 2)):
        for ids, ended in (([*word, 2], True), ([*word, *stop], True), (word, False), ([2], True)):
            padded = [*ids, pad, pad] if ended else ids
            assert drawer.trim(padded) == ids
            assert drawer.ended(ids) is ended
        assert drawer.text([*word, *stop]) == drawer.text([*word, 2]) == "yes"


def test_a_prompt_is_asked_in_lmflows_layout(inputs, tmp_path):
    words = [word for word in inputs if not word.startswith("layout=")]
    assert main([*words, "layout=lmflow", "iterations=1", f"output_dir={tmp_path / 'run'}"]) == 0
    assert all("###Human" not in row["response"] for row in rows(tmp_path / "run" / "samples" / "iteration-1.jsonl"))


@pytest.mark.distributed
def test_two_processes_give_the_single_ones_run(inputs, tmp_path):
    code = "import sys; from reproalign.ama.cli import main; sys.exit(main())"
    for name, words in (("one", []), ("two", ["launch=ddp", "launch.processes=2", "launch.main_port=0"])):
        words = [*inputs, "iterations=2", "critic_warmup=1", *words, f"output_dir={tmp_path / name}"]
        done = run_command([sys.executable, "-c", code, *words])
        assert done.returncode == 0, done.stderr[-3000:]
    for name in ("reward", "kl", "policy_loss", "value_loss", "grad_norm", "explained_variance", "length"):
        assert logged(tmp_path / "two", name) == pytest.approx(logged(tmp_path / "one", name), abs=1e-4), name
    left, right = (weights(tmp_path / name / "model") for name in ("one", "two"))
    for name, tensor in left.items():
        torch.testing.assert_close(right[name], tensor, atol=1e-4, rtol=1e-3)
