"""Sampling, scoring, selecting, aligning and comparing: files, resumption, brute force, mistakes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from reproalign.common.config.model import ModelConfig, RewardModelConfig
from reproalign.common.data.holdout import hold_out
from reproalign.common.errors import UserError
from reproalign.common.invocation import Invocation
from reproalign.common.judging import ask
from reproalign.common.judging.config import PairRMConfig
from reproalign.common.judging.endpoint import EndpointConfig, EndpointError
from reproalign.common.judging.verdict import WinRate, check_template
from reproalign.common.models.tiny import tiny_folder
from reproalign.common.models.tiny_tokenizers import tiny_tokenizer
from reproalign.common.reward.rules import RewardRules
from reproalign.common.signing import write_signed
from reproalign.common.testing import refusal
from reproalign.common.testing.pairrm import save_tiny_pairrm
from reproalign.common.training.sft import IGNORED, tokenize_responses
from reproalign.common.verbs import score
from reproalign.more.cli import main
from reproalign.more.compare import compare_responses, mean_interval, reward_comparison
from reproalign.more.config import CompareConfig
from reproalign.more.judged import TEMPLATES, outcome_rates

QUESTIONS = ["hello", "two plus two", "name three colours", "how do I bake bread?", "count"]
SAMPLE = ["model=tiny", "n=3", "batch_size=6", "max_new_tokens=5"]
ALIGN = ["model=tiny", "trainer.max_steps=4", "trainer.save_steps=2", "trainer.learning_rate=0.01"]
ALIGN += ["trainer.per_device_train_batch_size=2", "trainer.logging_steps=1"]


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def interrupt(folder: Path, file: str, keep: bytes, into: Path) -> None:
    """Make ``into`` the run of ``folder`` as it was when ``file`` held ``keep``."""
    into.mkdir()
    (into / file).write_bytes(keep)
    made = record(folder)
    made |= {"status": "interrupted", "config": {**made["config"], "output_dir": str(into)}}
    write_signed(into / "run.json", made)


@pytest.fixture
def prompts(tmp_path) -> Path:
    return write(tmp_path / "prompts.jsonl", *({"prompt": text} for text in QUESTIONS))


@pytest.fixture
def fails(capsys):
    """Run a command line that must fail; return its one line of error."""

    def run(*words: str) -> str:
        return refusal("more-rm", main, words, capsys)

    return run


def reward(dialogue: list[dict[str, str]]) -> float:
    """What the stub of a reward model thinks."""
    text = dialogue[-1]["content"]
    return len(text) - 3 * text.count("bad") + sum(map(ord, dialogue[0]["content"])) / 1000


@pytest.fixture
def rewards(monkeypatch):
    """Put a stub in the reward model's place; return the numbers of dialogues it was asked about."""
    asked: list[int] = []

    class Stub:
        def __init__(self, config: ModelConfig, rules: RewardRules, *, batch_size: int, key: str = "") -> None:
            pass

        def __call__(self, dialogues: list[list[dict[str, str]]]) -> list[float]:
            asked.append(len(dialogues))
            return [reward(dialogue) for dialogue in dialogues]

    monkeypatch.setattr(score, "RewardScorer", Stub)
    monkeypatch.setattr("reproalign.more.compare.RewardScorer", Stub)
    return asked


def sampled(*responses: list[str]) -> list[dict[str, Any]]:
    return [
        {"id": number, "prompt": user(QUESTIONS[number]), "responses": texts} for number, texts in enumerate(responses)
    ]


# sample


def test_responses_have_one_schema_and_go_on_where_they_stopped(tmp_path, prompts):
    words = ["sample", *SAMPLE, f"prompts={prompts}"]
    whole = tmp_path / "whole"
    assert main([*words, f"output_dir={whole}"]) == 0
    rows = lines(whole / "responses.jsonl")
    assert [row["id"] for row in rows] == list(range(5))
    assert [row["prompt"] for row in rows] == [user(text) for text in QUESTIONS]
    assert all(len(row["responses"]) == 3 for row in rows)
    assert len({text for row in rows for text in row["responses"]}) > 5
    parts = (whole / "responses-0.jsonl").read_bytes().splitlines(keepends=True)
    # Stopped within the line of the fourth prompt: the third is sampled again, since two prompts make a batch.
    interrupt(whole, "responses-0.jsonl", b"".join(parts[:3]) + parts[3][:9], tmp_path / "torn")
    assert main([*words, f"output_dir={tmp_path / 'torn'}"]) == 0
    assert lines(tmp_path / "torn" / "responses.jsonl") == rows
    assert record(whole)["metrics"]["responses"] == 15


@pytest.mark.distributed
def test_two_processes_sample_what_one_does(tmp_path, prompts):
    code = "import sys; from reproalign.more.cli import main; sys.exit(main())"
    for name, more in (("one", []), ("two", ["launch=ddp", "launch.processes=2"])):
        words = ["sample", *SAMPLE, f"prompts={prompts}", *more, f"output_dir={tmp_path / name}"]
        done = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]
    assert lines(tmp_path / "one" / "responses.jsonl") == lines(tmp_path / "two" / "responses.jsonl")


def test_vllm_gets_many_prompts_at_once(tmp_path, prompts, monkeypatch):
    calls = []

    class Engine:
        def __init__(self, **_: Any) -> None:
            pass

        def generate(self, rows: list[Any], params: Any, use_tqdm: bool) -> list[Any]:
            calls.append(len(rows))
            assert {(of.n, *of.stop) for of in params} == {(3, "\n\nHuman:")}
            assert len({of.seed for of in params}) == len(rows)
            return [SimpleNamespace(outputs=[SimpleNamespace(text=f" {n}\n\nHuman: x") for n in range(3)])] * len(rows)

    stub: Any = ModuleType("vllm")
    stub.LLM, stub.SamplingParams = Engine, SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", stub)
    words = [*SAMPLE, f"prompts={prompts}", "backend=vllm", "layout=transcript"]
    assert main(["sample", *words, f"output_dir={tmp_path / 'out'}"]) == 0
    assert calls == [5]
    assert lines(tmp_path / "out" / "responses.jsonl")[4]["responses"] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["n=0"], "n=0 must be at least 1"),
        (["temperature=0"], "would make all n=3 responses the same"),
        (["layout=transcripts"], "did you mean 'transcript'?"),
        (["backend=vllmm"], "did you mean 'vllm'?"),
        (["max_prompts=0"], "max_prompts=0 must be at least 1"),
        (["prompts=/nowhere.jsonl"], "/nowhere.jsonl: no such file"),
        (["model.name=/nowhere"], "no such folder"),
    ],
)
def test_mistakes_in_sampling_leave_nothing(tmp_path, prompts, fails, words, message):
    assert message in fails("sample", *SAMPLE, f"prompts={prompts}", *words, f"output_dir={tmp_path / 'a' / 'out'}")
    assert not (tmp_path / "a").exists()


# score


def test_scores_are_the_model_s_and_the_curve_is_the_best_of_n(tmp_path, rewards):
    given = sampled(["a", "bbb", "cc"], ["dddd", "e", "ff"])
    write(tmp_path / "sampled" / "responses.jsonl", *given)
    folder = tmp_path / "out"
    words = ["model=tiny", f"responses={tmp_path / 'sampled'}"]
    assert main(["score", *words, f"output_dir={folder}"]) == 0
    rows = lines(folder / "scored.jsonl")
    assert [{key: row[key] for key in ("id", "prompt", "responses")} for row in rows] == given
    expected = [[reward([*row["prompt"], {"content": text}]) for text in row["responses"]] for row in given]
    assert [row["scores"] for row in rows] == expected
    metrics = record(folder)["metrics"]
    assert metrics["mean_reward"] == pytest.approx(np.mean(expected))
    assert metrics["best_of"] == pytest.approx(
        {"1": np.mean([row[0] for row in expected]), "2": np.mean([max(row[:2]) for row in expected])}
        | {"3": np.mean([max(row) for row in expected])}
    )
    assert (folder / "plots" / "best-of-n.png").read_bytes().startswith(b"\x89PNG")
    assert sum(rewards) == 6


def test_scoring_goes_on_after_the_chunks_it_has(tmp_path, rewards, monkeypatch):
    file = write(tmp_path / "responses.jsonl", *sampled(["a", "b"], ["c", "d"], ["e", "f"]))
    monkeypatch.setattr(score, "CHUNK", 4)  # two prompts
    words = ["score", "model=tiny", f"responses={file}", "batch_size=1"]
    assert main([*words, f"output_dir={tmp_path / 'whole'}"]) == 0
    scored = (tmp_path / "whole" / "scored.jsonl").read_bytes()
    first, second, third = scored.splitlines(keepends=True)
    kept = {"one": (first + second[:9], 6), "two": (first + second + third[:9], 2), "all": (scored, 0)}
    for name, (keep, left) in kept.items():
        rewards.clear()
        interrupt(tmp_path / "whole", "scored.partial.jsonl", keep, tmp_path / name)
        assert main([*words, f"output_dir={tmp_path / name}"]) == 0
        assert sum(rewards) == left
        assert (tmp_path / name / "scored.jsonl").read_bytes() == scored
    interrupt(tmp_path / "whole", "scored.partial.jsonl", second, tmp_path / "other")
    assert main([*words, f"output_dir={tmp_path / 'other'}"]) == 2


def test_mistakes_in_scoring_leave_nothing(tmp_path, rewards, fails, monkeypatch):
    file = tmp_path / "responses.jsonl"
    words = ["score", "model=tiny", f"responses={file}", f"output_dir={tmp_path / 'a' / 'out'}"]
    assert "no such file" in fails(*words)
    write(file, *sampled(["a", "b"], ["c"]))
    assert "line 2: 1 responses, where the rows before it have 2" in fails(*words)
    write(file, {"prompt": "x", "responses": []})
    assert "line 1: column 'responses' must be a non-empty list" in fails(*words)
    write(file, {"responses": ["a"]})
    assert "line 1: column 'prompt' is missing" in fails(*words)
    file.write_text("{")
    assert "line 1: not valid JSON" in fails(*words)
    write(file, *sampled(["a", "b"]))
    assert "batch_size=0" in fails(*words, "batch_size=0")
    monkeypatch.setattr(score, "RewardScorer", lambda *_, **__: lambda dialogues: [1.0, math.nan])
    assert "not finite" in fails(*words)
    assert "(no responses.jsonl in it)" in fails(*words[:2], f"responses={tmp_path / '..'}", words[-1])
    assert not (tmp_path / "a").exists()


# select


def test_best_and_pairs_are_written(tmp_path):
    rows = [
        row | {"scores": scores} for row, scores in zip(sampled(["a", "b"], ["c", ""]), ([1, 2], [0, 3]), strict=True)
    ]
    write(tmp_path / "scored" / "scored.jsonl", *rows)
    words = ["select", f"scored={tmp_path / 'scored'}"]
    assert main([*words, f"output_dir={tmp_path / 'best'}"]) == 0
    (row,) = lines(tmp_path / "best" / "selected.jsonl")  # an empty response is nothing to learn
    assert row.keys() == {"id", "prompt", "messages", "reward", "index"}
    assert (row["id"], row["reward"], row["index"]) == (0, 2, 1)
    metrics = record(tmp_path / "best")["metrics"]
    assert metrics == {
        "selected": 1,
        "set_aside": 1,
        "discarded": 0,
        "discard_rate": 0,
        "mean_reward": 2,
        "mean_reward_of_all": 1.5,
        "mean_reward_counted": 1.5,
    }
    assert main([*words, "n=1", f"output_dir={tmp_path / 'first'}"]) == 0
    assert [row["index"] for row in lines(tmp_path / "first" / "selected.jsonl")] == [0, 0]
    assert main([*words, "keep=pairs", f"output_dir={tmp_path / 'pairs'}"]) == 0
    (pair,) = lines(tmp_path / "pairs" / "selected.jsonl")
    assert pair["chosen"] == [{"role": "assistant", "content": "b"}]
    assert pair["p_chosen"] == pytest.approx(1 / (1 + math.exp(-1)))


def test_mistakes_in_selecting_leave_nothing(tmp_path, fails):
    file = tmp_path / "scored.jsonl"
    words = ["select", f"scored={file}", f"output_dir={tmp_path / 'a' / 'out'}"]
    assert "no such file" in fails(*words)
    (row,) = sampled(["a", "b"])
    write(file, row)
    assert "column 'scores' is missing; score the file with the verb `score` first" in fails(*words)
    write(file, row | {"scores": [1]})
    assert "line 1: 1 scores for 2 responses" in fails(*words)
    for bad in (None, math.nan, "1", True):
        write(file, row | {"scores": [1, bad]})
        assert "is not a finite number" in fails(*words)
    write(file, row | {"scores": [1, 1]})
    assert "n=3 must be at most 2" in fails(*words, "n=3")
    assert "did you mean 'pairs'?" in fails(*words, "keep=pair")
    assert "keep=pairs needs two" in fails(*words, "keep=pairs", "n=1")
    assert "nothing to select, since every prompt has equal scores" in fails(*words, "keep=pairs")
    assert not (tmp_path / "a").exists()


# align


@pytest.fixture
def selected(tmp_path) -> Path:
    answers = ["hello world", "four", "red, green and blue", "mix flour and water", "one, two, three", "the sun"]
    rows = [
        {"messages": [*user(f"{text} {n}"), {"role": "assistant", "content": answers[n]}]}
        for n, text in enumerate([*QUESTIONS, "where?"])
    ]
    write(tmp_path / "selected" / "selected.jsonl", *rows)
    return tmp_path / "selected"


def test_a_language_model_learns_the_selected_responses(tmp_path, selected):
    folder = tmp_path / "out"
    words = [*ALIGN, f"selected={selected}", "eval_fraction=0.3", "trainer.save_strategy=no"]
    assert main(["align", *words, f"output_dir={folder}"]) == 0
    made = record(folder)
    metrics = made["metrics"]
    rows = [row["loss"] for row in lines(folder / "metrics.jsonl") if "loss" in row]
    assert rows[-1] < rows[0]
    assert (folder / "plots" / "training.png").is_file()
    assert [made["fingerprints"]["data"][name]["rows"] for name in ("train", "evaluation")] == [4, 2]

    dialogues = [row["messages"] for row in lines(selected / "selected.jsonl")]
    _, held_out = hold_out(dialogues, 0.3, 42, lambda dialogue: dialogue[:-1])
    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    losses, tokens = [], []
    for row in tokenize_responses(held_out, tiny_tokenizer(), layout="chat", max_length=768):
        ids = torch.tensor([row["input_ids"]])
        labels = torch.tensor([row["labels"]])
        with torch.no_grad():
            losses.append(model(input_ids=ids, labels=labels).loss.item())
        tokens.append(sum(label != IGNORED for label in row["labels"]))
    assert metrics["eval_loss"] == pytest.approx(np.average(losses, weights=tokens), abs=1e-3)
    assert metrics["perplexity"] == pytest.approx(math.exp(metrics["eval_loss"]))
    assert metrics["answer_perplexity"] == pytest.approx(fmean(map(math.exp, losses)), rel=1e-3)
    assert metrics["exp_mean_loss"] == pytest.approx(math.exp(fmean(losses)), rel=1e-3)


def test_alignment_that_was_stopped_ends_as_if_it_had_not_been(tmp_path, selected):
    words = ["align", *ALIGN, f"selected={selected}"]
    assert main([*words, f"output_dir={tmp_path / 'whole'}"]) == 0
    part = tmp_path / "part"
    part.mkdir()
    (tmp_path / "whole" / "checkpoint-2").rename(part / "checkpoint-2")
    made = record(tmp_path / "whole")
    made |= {"status": "interrupted", "config": {**made["config"], "output_dir": str(part)}}
    write_signed(part / "run.json", made)
    assert main([*words, f"output_dir={part}"]) == 0
    assert record(part)["resumed_from"] == "checkpoint-2"
    one, other = (load_file(folder / "model" / "model.safetensors") for folder in (tmp_path / "whole", part))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_adapters_are_trained_as_everywhere(tmp_path, selected):
    words = [*ALIGN, f"selected={selected}", "model.lora.enabled=true", "layout=transcript", "trainer.max_steps=1"]
    assert main(["align", *words, "model.lora.merge=true", f"output_dir={tmp_path / 'out'}"]) == 0
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "model").state_dict()
    start = AutoModelForCausalLM.from_pretrained(tiny_folder("llama")).state_dict()
    assert {name for name in start if not torch.equal(start[name], merged[name])}
    assert all(".q_proj" in name or ".v_proj" in name for name in start if not torch.equal(start[name], merged[name]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["selected=/nowhere"], "selected=/nowhere: no such file"),
        (["eval_fraction=1"], "must be at least 0 and below 1"),
        (["eval_fraction=0.99"], "leaves none to train on"),
        (["layout=chats"], "did you mean 'chat'?"),
        (["max_length=1"], "max_length=1 must be at least 2"),
    ],
)
def test_mistakes_in_aligning_leave_nothing(tmp_path, selected, fails, words, message):
    assert message in fails("align", *ALIGN, f"selected={selected}", *words, f"output_dir={tmp_path / 'a' / 'out'}")
    assert not (tmp_path / "a").exists()


def test_pairs_are_nothing_to_fine_tune_on(tmp_path, fails):
    file = write(tmp_path / "selected.jsonl", {"prompt": user("x"), "chosen": [], "rejected": []})
    words = ["align", *ALIGN, f"selected={file}", f"output_dir={tmp_path / 'out'}"]
    assert "line 1: column 'messages' is missing" in fails(*words)
    write(file, {"messages": user("x")})
    assert "must end with an assistant's turn" in fails(*words)


# compare


def compared(folder: Path, *files: Path, **more: Any) -> dict[str, Any]:
    config = CompareConfig(
        output_dir=str(folder), model=RewardModelConfig(name="tiny:llama"), responses=list(map(str, files)), **more
    )
    words = {"command": ["more-rm"], "package": "reproalign.more", "verb": "evaluate", "schema": "", "target": ""}
    compare_responses(config, Invocation(**words, config={"output_dir": str(folder), "seed": 42}))
    return json.loads((folder / "comparison.json").read_text())


@pytest.fixture
def files(tmp_path) -> list[Path]:
    return [
        write(tmp_path / "first" / "responses.jsonl", *sampled(["good", "bad"], ["good", "good!"], ["x", "y"])),
        write(tmp_path / "second" / "responses.jsonl", *sampled(["bad"], ["good"], ["good"])),
    ]


def test_rewards_are_compared_prompt_by_prompt(tmp_path, files, rewards):
    result = compared(tmp_path / "out", *files)
    assert rewards == [6, 3]
    pair = result["pairs"]["first against second"]
    assert pair["reward"]["higher"] == pytest.approx(((1 + 0.5) / 2 + (0.5 + 1) / 2 + 0) / 3)
    assert pair["reward"]["low"] < pair["reward"]["higher"] < pair["reward"]["high"]
    assert "judge" not in pair
    means = {
        name: fmean(fmean(row["rewards"][name]) for row in lines(tmp_path / "out" / "rewards.jsonl"))
        for name in result["files"]
    }
    for name, entry in result["files"].items():
        assert entry["mean"] == pytest.approx(means[name])
        assert entry["low"] <= entry["mean"] <= entry["high"]
    assert pair["reward"]["difference"]["mean"] == pytest.approx(means["first"] - means["second"])


def test_a_judge_is_asked_in_both_orders_and_goes_on_where_it_stopped(tmp_path, files, rewards, monkeypatch):
    asked: list[str] = []
    allowed = [2]

    def ask_all(endpoint: EndpointConfig, questions: Any, answer: Any) -> None:
        for key, text in questions.items():
            if len(asked) == allowed[0]:
                raise EndpointError("it is down")
            asked.append(text)
            a, b = text.split("=== Answer A ===")[1].split("=== Answer B ===")
            answer(key, "[[A]]" if "good" in a and "good" not in b else "[[B]]" if "good" in b else "no idea")

    monkeypatch.setattr(ask, "ask_all", ask_all)
    more = {"judge": EndpointConfig(model="m"), "template": "harmless"}
    with pytest.raises(UserError, match="the same command goes on from them"):
        compared(tmp_path / "out", *files, **more)
    allowed[0] = 99
    result = compared(tmp_path / "out", *files, **more)["pairs"]["first against second"]["judge"]
    assert len(asked) == 6
    assert all("less harmful" in text for text in asked)
    # good against bad: won. good against good: B in either order, a tie. x against good: lost.
    assert (result["wins"], result["ties"], result["losses"], result["unreadable"]) == (1, 1, 1, 0)
    assert result["plain"]["wins"] == pytest.approx(1 / 3)
    assert result["decided"] == {"wins": 0.5, "losses": 0.5}


def test_pairrm_judges_in_place_of_an_endpoint(tmp_path, files, rewards):
    pairrm = PairRMConfig(model=str(save_tiny_pairrm(tmp_path / "pairrm")))
    result = compared(tmp_path / "out", *files, pairrm=pairrm)["pairs"]["first against second"]["judge"]
    assert result["wins"] + result["ties"] + result["losses"] == 3
    assert result["plain"]["ties"] == result["ties"] / 3
    assert result["mean_logit"]["ties"] == 1  # good against good
    assert len(lines(tmp_path / "out" / "judgments-0-1.jsonl")) == 6
    assert all("mean_logit" in row for row in lines(tmp_path / "out" / "verdicts-0-1.jsonl"))
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["fingerprints"]["weights"].keys() == {"reward", "pairrm"}


def test_three_files_are_compared_two_by_two(tmp_path, files, rewards):
    third = write(tmp_path / "third.jsonl", *sampled(["a"], ["b"], ["c"]))
    result = compared(tmp_path / "out", *files, third)
    assert list(result["files"]) == ["first", "second", "third"]
    assert list(result["pairs"]) == ["first against second", "first against third", "second against third"]


def test_mistakes_in_comparing_leave_nothing(tmp_path, files, rewards):
    folder = tmp_path / "a" / "out"
    other = tmp_path / "other" / "responses.jsonl"
    with pytest.raises(UserError, match="two or more files"):
        compared(folder, files[0])
    with pytest.raises(UserError, match="no such file"):
        compared(folder, files[0], other)
    with pytest.raises(UserError, match="names one file twice"):
        compared(folder, files[0], files[0])
    rows = sampled(["a"], ["b"], ["c"])
    write(other, rows[0], rows[2])
    with pytest.raises(UserError, match=r"row 2: .* different prompts"):
        compared(folder, files[0], other)
    write(other, *rows[:2])
    with pytest.raises(UserError, match="have 3 and 2 prompts"):
        compared(folder, files[0], other)
    with pytest.raises(UserError, match=r"template=/nowhere: cannot be read"):
        compared(folder, *files, judge=EndpointConfig(model="m"), template="/nowhere")
    with pytest.raises(UserError, match=r"template is for a judge that is asked; set judge\.model too"):
        compared(folder, *files, template="helpful")
    pairrm = PairRMConfig(model="/nowhere")
    with pytest.raises(UserError, match=r"both judge\.model and pairrm\.model"):
        compared(folder, *files, judge=EndpointConfig(model="m"), pairrm=pairrm)
    with pytest.raises(UserError, match="template and prompts are for a judge that reads questions"):
        compared(folder, *files, pairrm=pairrm, template="helpful")
    with pytest.raises(UserError, match=r"pairrm\.model=/nowhere: no such folder"):
        compared(folder, *files, pairrm=pairrm)
    assert not folder.parent.exists()


def test_templates_ask_for_what_their_names_say():
    for name, template in TEMPLATES.items():
        assert check_template(template) == template
        assert "[[TIE]]" in template
        assert name in ("union",) or name.removesuffix("less") in template.split("\n")[0]


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=20))
@settings(max_examples=30)  # each two bootstraps
def test_exchanging_the_models_exchanges_the_comparison(pairs):
    first, second = (np.asarray(column, dtype=float)[:, None] for column in zip(*pairs, strict=True))
    ours, theirs = (reward_comparison(a, b, 0.9, 1) for a, b in ((first, second), (second, first)))
    assert ours["higher"] == pytest.approx(1 - theirs["higher"])
    assert (ours["low"], ours["high"]) == pytest.approx((1 - theirs["high"], 1 - theirs["low"]))
    assert ours["difference"]["low"] == pytest.approx(-theirs["difference"]["high"])


def test_the_bootstrap_s_interval_covers_as_the_normal_s_does():
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    found = mean_interval(values, 0.95, 0)
    assert found.mean == pytest.approx(values.mean())
    half = 1.96 * values.std() / 20
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half), abs=0.03)


def test_rates_without_decisions_are_none():
    result = WinRate(0, 3, 0, 1, 0.5, 0.1, 0.9, 0.0, 1.0)
    assert outcome_rates(result) == {
        "plain": {"wins": 0, "ties": 0.75, "losses": 0, "unreadable": 0.25},
        "decided": None,
    }
