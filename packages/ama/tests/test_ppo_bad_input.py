"""Every mistake in ``ama align ppo`` gives one line that says what, where and what to do, and leaves nothing behind."""

from __future__ import annotations

import json

import pytest

from reproalign.ama.cli import main
from reproalign.common.models.tiny import save_tiny
from reproalign.common.models.tiny_tokenizers import tiny_tokenizer
from reproalign.common.testing import refusal
from reproalign.common.testing.tiny import tiny_reward_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("ppo")
    tiny_reward_model().save_pretrained(made / "reward")
    tiny_tokenizer().save_pretrained(made / "reward")
    (made / "prompts.jsonl").write_text(json.dumps({"prompt": "Name a moon of Jupiter, and say who found it."}) + "\n")
    for name, iteration in (("iteration-4", 4), ("iteration-40", 40)):
        save_tiny(made / name / "model")
        (made / name / "ppo.json").write_text(json.dumps({"iteration": iteration, "eta": 0.1, "baseline": 0.0}))
    (made / "rows.jsonl").write_text(json.dumps({"text": "no prompt"}) + "\n")
    return made


@pytest.fixture
def fails(folder, capsys, monkeypatch):
    """Run a command line that must fail; return its one line of error."""
    monkeypatch.chdir(folder)

    def run(*words: str) -> str:
        common = ["align", "ppo", "model.name=tiny:llama", "output_dir=out"]
        return refusal("ama", main, [*common, *words], capsys, untouched=folder)

    return run


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["reward=reward"], "prompts"),
        (["prompts=prompts.jsonl"], "reward"),
        (["prompts=none.jsonl"], "prompts=none.jsonl: no such file"),
        (["prompts=rows.jsonl"], "rows.jsonl line 1: column prompt (text or messages) is missing or empty"),
        (
            ["max_prompt_length=5"],
            "none of 1 prompts has at most max_prompt_length=5 tokens; raise it, or set overlong",
        ),
        (["reward=tiny:llama"], "reward=tiny:llama is no reward model with one output, but a language model"),
        (["model.name=./reward"], "model.name=./reward is a reward model; give a language model"),
        (["reference=./reward"], "reference=./reward is a reward model; give a language model"),
        (["reference=./nowhere"], "reference=./nowhere: no such folder"),
        (["layout=human"], "unknown layout 'human'"),
        (["overlong=cut"], "unknown overlong 'cut'"),
        (["whitening=batch"], "unknown whitening 'batch'"),
        (["lr_schedule=step"], "unknown lr_schedule 'step'"),
        (["kl.controller=adaptiv"], "unknown kl.controller 'adaptiv' (did you mean 'adaptive'?)"),
        (["kl.coef=-0.1"], "kl.coef=-0.1 must be at least 0"),
        (["kl.target=0"], "kl.target=0.0 must be above 0"),
        (["kl.horizon=0"], "kl.horizon=0 must be at least 1"),
        (["kl.target=3"], "kl.target is of kl.controller=adaptive"),
        (["clip=0"], "clip=0.0 must be above 0"),
        (["value_clip=nan"], "value_clip=nan must be above 0"),
        (["lam=1.1"], "lam=1.1 must be from 0 to 1"),
        (["gamma=-1"], "gamma=-1.0 must be from 0 to 1"),
        (["learning_rate=0"], "learning_rate=0.0 must be above 0"),
        (["max_grad_norm=-1"], "max_grad_norm=-1.0 must be above 0"),
        (["ratio_threshold=1"], "ratio_threshold=1.0 must be above 1"),
        (["reward_baseline=inf"], "reward_baseline=inf must be finite"),
        (["epochs=0"], "epochs=0 must be at least 1"),
        (["iterations=0"], "iterations=0 must be at least 1"),
        (["scoring.batch_size=0"], "scoring.batch_size=0 must be at least 1"),
        (["scoring.text.max_length=1"], "max_length=1 must be at least 3"),
        (["critic_warmup=-1"], "critic_warmup=-1 must be at least 0"),
        (["seed=-1"], "seed=-1 must be from 0 to 4294967295"),
        (["update_batch_size=100"], "prompts_per_iteration=512 must be a multiple of update_batch_size=100"),
        (["launch=fsdp"], "launch.strategy=fsdp"),
        (["model.dtype=float16"], "model.dtype=float16 cannot be trained with PPO"),
        (["logprobs.chunk_size=0"], "logprobs.chunk_size=0 must be at least 1"),
        (["restart_critic=kept"], "restart_critic=kept needs restart_from=RUN/iteration-K"),
        (["restart_from=nowhere"], "restart_from=nowhere: no iteration of a PPO run (no readable ppo.json)"),
        (["restart_from=iteration-40"], "restart_from=iteration-40 is iteration 40, and iterations=40 counts from the"),
        (
            ["restart_from=iteration-4", "model.lora.enabled=true"],
            "iteration-4 holds a whole model; set model.lora.enab",
        ),
        (["restart_from=iteration-4", "restart_critic=kept"], "holds no value head of this model"),
        (["resume=checkpoint-7"], "resume=checkpoint-7: no such checkpoint folder"),
        (["clipp=0.3"], "clipp"),
    ],
)
def test_a_mistake_is_one_line(fails, words, message):
    given = {word.partition("=")[0] for word in words}
    rest = [word for word in ("reward=./reward", "prompts=prompts.jsonl") if word.partition("=")[0] not in given]
    if message in ("prompts", "reward"):
        rest = []
    assert message in fails(*rest, *words)


def test_what_no_process_could_do_is_refused_before_one_is_started(fails):
    said = fails("reward=./reward", "prompts=prompts.jsonl", "launch=ddp", "launch.processes=3", "update_batch_size=4")
    assert "update_batch_size=4 must be a multiple of launch.processes=3" in said
    assert "running:" not in said
