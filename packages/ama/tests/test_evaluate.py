"""``ama evaluate``: rewards, perplexity and KL against plain computations; resumed, in two processes, refused."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from statistics import fmean, stdev

import pytest
import torch

from reproalign.ama.cli import main
from reproalign.ama.frontier.measures import Resampling, loss_estimate, mean_estimate
from reproalign.common.config.model import ModelConfig
from reproalign.common.models.load import load_causal_lm, load_tokenizer
from reproalign.common.models.tiny import save_tiny
from reproalign.common.models.tiny_tokenizers import tiny_tokenizer
from reproalign.common.reward.rules import RewardRules
from reproalign.common.reward.scorer import RewardScorer
from reproalign.common.signing import write_signed
from reproalign.common.testing import refusal, run_command
from reproalign.common.testing.tiny import tiny_reward_model
from reproalign.common.text.prompts import encode_prompt, prompt_text
from reproalign.common.text.tokenize import Encoder

CODE = "import sys; from reproalign.ama.cli import main; sys.exit(main())"
PROMPTS = ["Hi", "Sing a song of two dogs.", "Why?", "Name a moon.", "Count to four", "Go home", "The cat sat"]
TEXTS = ["the cat sat on a mat and saw two red dogs " * 3, "dogs run home", "a"]
LAYOUT = "layout=lmflow"
ROUNDED = ("reward", "rewards", "log_ratios", "nll")


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a folder with prompts, texts, a policy, a reference, and a reward model that tells texts apart."""
    folder = tmp_path_factory.mktemp("made")
    write(folder / "prompts.jsonl", [{"prompt": text} for text in PROMPTS])
    write(folder / "texts.jsonl", [{"text": text} for text in TEXTS])
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "two red dogs"}]
    write(folder / "dialogues.jsonl", [{"messages": turns}, {"messages": [*turns, *turns]}])
    for name, seed in (("policy", 1), ("reference", 2)):
        save_tiny(folder / name, seed=seed)
    reward = tiny_reward_model(seed=3)
    with torch.no_grad():
        reward.score.weight.mul_(50)
    reward.save_pretrained(folder / "reward")
    tiny_tokenizer().save_pretrained(folder / "reward")
    (folder / "reward" / "reward.json").write_text(json.dumps(RewardRules(layout="lmflow").note()))
    return folder


def words_of(made: Path, output: Path, *words: str) -> list[str]:
    rewarded = [f"prompts={made / 'prompts.jsonl'}", f"reward={made / 'reward'}", LAYOUT, "max_new_tokens=5"]
    fixed = [f"model.name={made / 'policy'}", f"output_dir={output}", "resamples=200"]
    return ["evaluate", *fixed, *rewarded, *words]


@pytest.fixture
def evaluate(made, tmp_path):
    def call(name: str = "run", *words: str) -> dict:
        assert main(words_of(made, tmp_path / name, *words)) == 0
        return json.loads((tmp_path / name / "results.json").read_text())

    call.folder = tmp_path
    return call


def lines_of(folder: Path, name: str = "rewards.jsonl") -> list[dict]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_the_reward_is_the_mean_over_prompts_of_what_the_reward_model_gives(evaluate, made):
    measures = evaluate("run", "n=2")["measures"]
    rows = lines_of(evaluate.folder / "run")
    assert [row["id"] for row in rows] == list(range(len(PROMPTS)))
    scorer = RewardScorer(
        ModelConfig(name=str(made / "reward"), dtype="float32"), RewardRules(layout="lmflow"), batch_size=1
    )
    for row, prompt in zip(rows, PROMPTS, strict=True):
        turns = [
            [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}] for text in row["responses"]
        ]
        assert row["rewards"] == pytest.approx(scorer(turns), abs=1e-4)
        assert row["reward"] == pytest.approx(fmean(row["rewards"]))
    values = [row["reward"] for row in rows]
    assert measures["reward"]["value"] == pytest.approx(fmean(values))
    assert measures["reward"]["stderr"] == pytest.approx(stdev(values) / math.sqrt(len(values)))
    assert measures["reward"]["low"] < measures["reward"]["value"] < measures["reward"]["high"]
    tokens = [
        fmean(len(tiny_tokenizer().encode(text, add_special_tokens=False)) for text in row["responses"]) for row in rows
    ]
    assert measures["length"]["value"] == pytest.approx(fmean(tokens))
    record = json.loads((evaluate.folder / "run" / "run.json").read_text())
    assert record["metrics"]["reward"] == measures["reward"]["value"]
    assert record["fingerprints"]["weights"].keys() == {"model", "reward"}
    assert not list((evaluate.folder / "run").glob(".losses*"))


def test_a_response_depends_neither_on_batches_nor_on_how_many_are_drawn(evaluate):
    evaluate("one", "batch_size=1")
    evaluate("five", "batch_size=5", "scoring.batch_size=3")
    evaluate("two", "n=2", "batch_size=4")
    one, five, two = (lines_of(evaluate.folder / name) for name in ("one", "five", "two"))
    assert [row["responses"] for row in one] == [row["responses"] for row in five]
    assert [row["responses"][0] for row in one] == [row["responses"][0] for row in two]
    assert [row["reward"] for row in one] == pytest.approx([row["reward"] for row in five], abs=1e-4)
    assert evaluate("other", "seed=43")["measures"] != evaluate("again", "seed=42")["measures"]


def test_discarded_responses_count_in_the_reward(evaluate):
    measures = evaluate("run", "variant=released", "max_new_tokens=3")["measures"]
    rows = lines_of(evaluate.folder / "run")
    expected = ["#" in row["responses"][0] or len(row["responses"][0]) < 4 for row in rows]
    assert [row["discarded"] for row in rows] == [[found] for found in expected]
    assert 0 < fmean(expected) == pytest.approx(measures["discard_rate"]["value"])
    assert measures["reward"]["value"] == pytest.approx(fmean(row["reward"] for row in rows))


def plain_nll(model, ids: list[int], start: int) -> float:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(1)
    return -float(sum(logits[place - 1, ids[place]] for place in range(max(start, 1), len(ids))))


def test_perplexity_is_of_every_token_of_a_text_and_of_the_answers_of_dialogues(evaluate, made):
    files = f"texts=[{made / 'texts.jsonl'},{made / 'dialogues.jsonl'}]"
    results = evaluate("run", files, "text_length=16", "model.dtype=float32")["measures"]
    config = ModelConfig(name=str(made / "policy"), dtype="float32")
    model, tokenizer = load_causal_lm(config, trainable=False).double(), load_tokenizer(config)
    expected, tokens = 0.0, 0
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        for start in range(0, len(ids), 16):
            expected += plain_nll(model, ids[start : start + 16], 1)
            tokens += max(0, len(ids[start : start + 16]) - 1)
    assert results["loss_texts"]["value"] == pytest.approx(expected / tokens, rel=1e-5)
    assert results["perplexity_texts"]["value"] == pytest.approx(math.exp(expected / tokens), rel=1e-4)
    rows = lines_of(evaluate.folder / "run", "losses.jsonl")
    assert sum(row["tokens"] for row in rows if row["file"] == "texts") == tokens
    assert [row["row"] for row in rows if row["file"] == "dialogues"] == [0, 1]
    assert results["loss"]["value"] == pytest.approx(
        sum(row["nll"] for row in rows) / sum(row["tokens"] for row in rows)
    )


def test_dialogues_are_measured_in_the_template_that_the_model_is_asked_by(evaluate, made):
    words = [f"texts=[{made / 'dialogues.jsonl'}]", f"reference={made / 'reference'}", "layout=chat", "max_prompts=2"]
    own, other = (evaluate(name, *words, f"model.chat_template={name}") for name in ("zephyr", "text"))
    for measure in ("loss", "kl"):
        assert own["measures"][measure]["value"] != other["measures"][measure]["value"]
    losses = [lines_of(evaluate.folder / name, "losses.jsonl") for name in ("zephyr", "text")]
    assert losses[0] != losses[1]


def test_the_kl_is_the_mean_log_ratio_of_its_own_responses(evaluate, made):
    results = evaluate("run", f"reference={made / 'reference'}", "model.dtype=float32")
    models = [
        load_causal_lm(ModelConfig(name=str(made / name), dtype="float32"), trainable=False).double()
        for name in ("policy", "reference")
    ]
    tokenizer = tiny_tokenizer()
    rows = lines_of(evaluate.folder / "run")
    for row, prompt in zip(rows, PROMPTS, strict=True):
        text = prompt_text(tokenizer, [{"role": "user", "content": prompt}], "lmflow")
        head = encode_prompt(tokenizer, text, "lmflow")
        ids = [*head, *Encoder(tokenizer).continuation(f" {row['responses'][0]}")] if row["responses"][0] else head
        own, other = (plain_nll(model, ids, len(head)) for model in models)
        assert row["log_ratios"] == [pytest.approx(other - own, abs=1e-3)]
    assert results["measures"]["kl"]["value"] == pytest.approx(fmean(row["log_ratios"][0] for row in rows))
    same = evaluate("same", f"reference={made / 'policy'}")
    assert same["measures"]["kl"]["value"] == pytest.approx(0, abs=1e-5)


def test_an_interrupted_evaluation_goes_on(evaluate, made):
    files = f"texts=[{made / 'texts.jsonl'}]"
    evaluate("whole", files, "batch_size=2")
    evaluate("cut", files, "batch_size=2")
    folder = evaluate.folder / "cut"
    record = json.loads((folder / "run.json").read_text())
    write_signed(folder / "run.json", record | {"status": "failed"})
    drawn = (folder / "responses-0.jsonl").read_text().splitlines(keepends=True)
    (folder / "responses-0.jsonl").write_text("".join(drawn[:5]) + drawn[5][:10])
    for name in ("responses.jsonl", "rewards.jsonl", "results.json"):
        (folder / name).unlink()
    evaluate("cut", files, "batch_size=2")
    for name in ("responses.jsonl", "rewards.jsonl", "losses.jsonl"):
        assert (folder / name).read_text() == (evaluate.folder / "whole" / name).read_text()


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_give_what_one_gives(evaluate, made):
    words = [f"texts=[{made / 'texts.jsonl'}]", f"reference={made / 'reference'}", "batch_size=2"]
    evaluate("one", *words)
    command = words_of(made, evaluate.folder / "two", *words, "launch=ddp", "launch.processes=2")
    done = run_command([sys.executable, "-c", CODE, *command])
    assert done.returncode == 0, done.stderr
    for name in ("responses.jsonl", "rewards.jsonl", "losses.jsonl"):
        one, two = (lines_of(evaluate.folder / folder, name) for folder in ("one", "two"))
        for left, right in zip(one, two, strict=True):  # processes compute with other numbers of threads
            for key, value in left.items():
                assert right[key] == (pytest.approx(value, rel=1e-4, abs=1e-4) if key in ROUNDED else value), key


def test_intervals_are_those_of_means_and_ratios():
    how = Resampling(0.9, 2000, 0)
    found = mean_estimate([float(value) for value in range(100)], how)
    assert (found.value, found.items) == (49.5, 100)
    assert found.low == pytest.approx(49.5 - 1.645 * found.stderr, abs=0.5)
    assert mean_estimate([3.0], how).stderr is None
    ratio = loss_estimate([2.0, 4.0, 6.0], [1, 2, 3], how)
    assert (ratio.value, ratio.stderr) == (2.0, pytest.approx(0))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["n=0"], "n=0 must be at least 1"),
        (["variant=release"], "unknown variant 'release'"),
        (["variant=released", "layout=chat"], "variant=released cuts and cleans responses at '###Human'"),
        (["layout=lmflo"], "unknown layout 'lmflo' (did you mean 'lmflow'?)"),
        (["prompts=null", "texts=[{made}/texts.jsonl]"], "give prompts=FILE too"),
        (["prompts=null", "reward=null"], "nothing to evaluate"),
        (["reward={made}/policy"], "reward={made}/policy is no reward model with one output"),
        (["reference={made}/reward"], "reference={made}/reward is a reward model; give a language model"),
        (["model.name={made}/reward"], "model.name={made}/reward is a reward model"),
        (["texts=[nowhere.jsonl]"], "texts=nowhere.jsonl: no such file"),
        (["texts=[{made}/prompts.jsonl]"], "prompts.jsonl line 1: column text or messages is missing or empty"),
        (["texts=[{made}/texts.jsonl,{made}/texts.jsonl]"], "two files are called 'texts'"),
        (["max_texts=3"], "max_texts=3 is for texts"),
        (["confidence=1"], "confidence=1.0 must be above 0 and below 1"),
        (["temperature=0", "n=2"], "temperature=0 would make all n=2 responses the same"),
        (["launch.strategy=fsdp"], "use launch=ddp"),
        (["scoring.batch_size=0"], "scoring.batch_size=0 must be at least 1"),
    ],
)
def test_mistakes_are_one_sentence_and_nothing_is_written(made, tmp_path, capsys, words, said):
    filled = [word.replace("{made}", str(made)) for word in words]
    found = refusal("ama", main, words_of(made, tmp_path / "run", *filled), capsys, untouched=tmp_path)
    assert said.replace("{made}", str(made)) in found
