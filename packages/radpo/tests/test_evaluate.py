"""Evaluations, figures, samples and a judge's verdicts against brute force, recorded runs and a local stub server."""

from __future__ import annotations

import json
import math
import shutil
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from reproalign.common.config.data import SetConfig
from reproalign.common.config.model import ModelConfig
from reproalign.common.evaluation.alpacaeval import instruction_text
from reproalign.common.evaluation.plots import mean_curve, smoothed
from reproalign.common.generation.asking import cut, turn_end
from reproalign.common.generation.rules import SamplingRules
from reproalign.common.generation.sampling import shares
from reproalign.common.generation.transformers_engine import transformers_sampler
from reproalign.common.invocation import Invocation
from reproalign.common.journal import recover_lines
from reproalign.common.judging.verdict import TEMPLATE, check_template, question, verdict, wilson, win_rate
from reproalign.common.models.identify import model_label
from reproalign.common.models.tiny import tiny_folder
from reproalign.common.models.tiny_tokenizers import tiny_tokenizer
from reproalign.common.records.groups import group_runs
from reproalign.common.signing import write_signed
from reproalign.common.testing import composed, refusal
from reproalign.common.testing.pairrm import save_tiny_pairrm
from reproalign.common.text.collate import PairCollator
from reproalign.radpo.cli import APP, main
from reproalign.radpo.config import RowDataConfig, RowTextConfig
from reproalign.radpo.data import load_examples, prepare_rows
from reproalign.radpo.evaluate import as_trained
from reproalign.radpo.report import measured, second_half
from reproalign.radpo.rows import RowRules
from reproalign.radpo.sweep import against_alpha

QUICK = ["experiment=smoke", "trainer.max_steps=4", "trainer.eval_strategy=steps", "trainer.eval_steps=2"]
QUICK += ["data.max_eval_rows=6", "trainer.save_strategy=no"]
LENGTHS = ["text.max_length=256", "text.max_prompt_length=128"]  # of the recipe smoke
SAMPLE = ["model=tiny", "data=demo", "max_prompts=5", "batch_size=2", "max_new_tokens=5", "temperature=1.0"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPROALIGN_CACHE", str(tmp_path_factory.mktemp("cache")))
        assert main(["train", *QUICK, f"output_dir={folder}"]) == 0
    return folder


@pytest.fixture
def fails(tmp_path, capsys):
    """Run a command line that must fail; return its one line of error."""

    def run(*words: str) -> str:
        return refusal("radpo", main, words, capsys)

    return run


def record(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run.json").read_text())


def interrupt(folder: Path, file: str, keep: bytes, into: Path) -> None:
    """Make ``into`` the run of ``folder`` as it was when ``file`` held ``keep``."""
    into.mkdir()
    (into / file).write_bytes(keep)
    made = record(folder)
    made |= {"status": "interrupted", "config": {**made["config"], "output_dir": str(into)}}
    write_signed(into / "run.json", made)


# evaluate


def test_an_evaluation_repeats_the_training_run_s_own(tmp_path, trained):
    words = ["model=tiny", "data=demo", f"model.name={trained / 'model'}", "reference.model=tiny:llama"]
    assert main(["evaluate", *words, *LENGTHS, "data.max_eval_rows=6", f"output_dir={tmp_path / 'out'}"]) == 0
    found = record(tmp_path / "out")
    expected = record(trained)["metrics"]["after"]
    assert found["metrics"].keys() == expected.keys()
    assert found["metrics"] == pytest.approx(expected, abs=1e-5)
    assert {"policy", "reference"} == found["fingerprints"]["weights"].keys()


@pytest.fixture(scope="module")
def by_tdpo(tmp_path_factory, trained) -> str:
    """The trained model, as a run of another loss would have left it."""
    folder = tmp_path_factory.mktemp("tdpo")
    shutil.copytree(trained / "model", folder / "model")
    made = record(trained)
    loss = {"name": "tdpo", "beta": 0.3, "alpha": 0.7}
    write_signed(folder / "run.json", made | {"config": {**made["config"], "loss": loss}})
    return str(folder / "model")


@pytest.mark.parametrize(
    ("words", "loss"),
    [
        ([], {"name": "tdpo", "beta": 0.3, "alpha": 0.7}),
        (["loss.beta=0.2"], {"name": "tdpo", "beta": 0.2, "alpha": 0.7}),
        (["loss=tdpo"], {"name": "tdpo", "beta": 0.3}),
        (["loss=ra-dpo", "loss.risk=entropic"], {"name": "ra-dpo", "beta": 0.3}),
        (["loss.risk=entropic"], {"name": "ra-dpo", "beta": 0.1}),  # a key of another loss than the training's
    ],
)
def test_an_evaluation_takes_the_loss_of_the_training_but_for_the_user_s_words(by_tdpo, words, loss):
    command = ["radpo", "evaluate", f"model.name={by_tdpo}", "data=demo", "output_dir=out", *words]
    config = composed(APP, *command[2:], verb="evaluate")
    asked = Invocation(command, "reproalign.radpo", "evaluate", "reproalign.radpo.config:EvaluateConfig", "", config)
    assert as_trained(asked).config["loss"].items() >= loss.items()


@pytest.mark.parametrize("words", [["loss=tdpo"], ["loss=ra-dpo", "loss.risk=entropic", "loss.risk.mu=2.0"]])
def test_an_evaluation_by_brute_force(tmp_path, trained, words):
    folder = tmp_path / "out"
    base = ["model=tiny", "data=demo", f"model.name={trained / 'model'}", "reference.model=tiny:llama"]
    assert (
        main(["evaluate", *base, *words, *LENGTHS, "data.max_eval_rows=5", "batch_size=2", f"output_dir={folder}"]) == 0
    )
    metrics = record(folder)["metrics"]

    data = RowDataConfig(sets={"demo": SetConfig(path="demo:pairs-eval")})
    examples = load_examples(data, train=False).evaluation
    assert examples is not None
    text = RowTextConfig(max_length=256, max_prompt_length=128)
    rules = RowRules(batch_size=1, incomplete="keep")
    pairs, _ = prepare_rows(examples, tiny_tokenizer(), text, data, rules, max_rows=5)
    models = [AutoModelForCausalLM.from_pretrained(name) for name in (trained / "model", tiny_folder("llama"))]
    rewards, kls, risks = [], [], []
    for row in pairs:
        batch = PairCollator(0)([row])
        with torch.no_grad():
            logps, ref = (
                model(batch["input_ids"], attention_mask=batch["attention_mask"])
                .logits.double()
                .log_softmax(-1)[:, :-1]
                for model in models
            )
        mask, targets = batch["completion_mask"][:, 1:].bool(), batch["input_ids"][:, 1:, None]
        d = ref - logps
        kls.append(((ref.exp() * d).sum(-1) * mask).sum(1))
        risks.append((((ref + 2 * d).logsumexp(-1) / 2) * mask).sum(1))
        rewards.append(0.1 * (-(d.gather(2, targets)[..., 0]) * mask).sum(1))
    reward, kl, risk = (torch.stack(values) for values in (rewards, kls, risks))
    assert metrics["rewards/accuracies"] == pytest.approx((reward[:, 0] > reward[:, 1]).double().mean().item())
    with_term = reward + 0.1 * (kl if "loss=tdpo" in words else risk)
    assert metrics["rewards/accuracies_with_term"] == pytest.approx(
        (with_term[:, 0] > with_term[:, 1]).double().mean().item()
    )
    assert metrics["rewards/margins"] == pytest.approx((reward[:, 0] - reward[:, 1]).mean().item(), abs=1e-4)
    assert metrics["kl/chosen"] == pytest.approx(kl[:, 0].mean().item(), abs=1e-4)
    assert metrics["kl/rejected"] == pytest.approx(kl[:, 1].mean().item(), abs=1e-4)
    if "loss=tdpo" in words:
        assert "risk_ratio/chosen" not in metrics
    else:
        assert metrics["risk_ratio/chosen"] == pytest.approx(risk[:, 0].mean().item(), abs=1e-4)
        assert metrics["risk_ratio/rejected"] == pytest.approx(risk[:, 1].mean().item(), abs=1e-4)


def test_data_path_alone_is_evaluated(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"prompt": "Name a moon.", "chosen": "Europa.", "rejected": "A fork."}) + "\n")
    words = ["model=tiny", "data=own", f"data.sets.own.path={file}", "reference.model=tiny:llama"]
    assert main(["evaluate", *words, f"output_dir={tmp_path / 'out'}"]) == 0
    metrics = record(tmp_path / "out")["metrics"]
    assert metrics["kl/chosen"] == pytest.approx(0, abs=1e-5)  # the policy is its reference
    assert metrics["rewards/accuracies"] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "set reference.model"),
        (["reference.model=/nowhere"], "reference.model=/nowhere: no such folder"),
        (["reference.model=tiny:llama", "model.quantization=4bit"], "Trainer measures no quantised weights"),
        (["reference.model=tiny:llama", "batch_size=0"], "batch_size=0 must be at least 1"),
        (["reference.model=tiny:llama", "loss.risk=cvarr"], "did you mean 'cvar'?"),
        (["reference.model=tiny:llama", "data.sets.demo.eval_path=/nowhere.jsonl"], "/nowhere.jsonl: no such file"),
    ],
)
def test_mistakes_of_an_evaluation_leave_nothing(tmp_path, fails, words, message):
    assert message in fails("evaluate", "model=tiny", "data=demo", *words, f"output_dir={tmp_path / 'a' / 'out'}")
    assert not (tmp_path / "a").exists()


# plot


def made_up(folder: Path, *rows: dict[str, Any], seed: int = 1, beta: float = 0.1, **more: Any) -> Path:
    folder.mkdir(parents=True)
    config = {"seed": seed, "output_dir": str(folder), "loss": {"beta": beta}}
    run = {"config": config, "status": "finished", "command": "radpo train", "recipe": None, "metrics": {}, **more}
    write_signed(folder / "run.json", run)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def evaluated(step: int, value: float) -> dict[str, Any]:
    return {"step": step} | {f"eval_{name}": value for name in ("kl/chosen", "kl/rejected", "rewards/accuracies")}


def test_a_run_s_evaluations_begin_before_and_end_after_training(trained):
    points = measured(trained).points
    assert list(points) == [0, 2, 4]
    metrics = record(trained)["metrics"]
    assert points[0]["kl/chosen"] == pytest.approx(0, abs=1e-5)
    assert points[4]["kl/chosen"] == pytest.approx(metrics["after"]["kl/chosen"])
    assert points[4]["kl/chosen"] > points[2]["kl/chosen"] > 0


@pytest.mark.usefixtures("pictures")
def test_runs_are_drawn_side_by_side(tmp_path, trained, capsys):
    other = made_up(tmp_path / "other", {"step": 1, "loss": 1.0}, evaluated(2, 0.5), {"step": 2, "eval_x": "NaN"})
    output = tmp_path / "new" / "figure.png"
    assert main(["plot", str(trained), str(other), "--output", str(output)]) == 0
    assert output.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "run " in printed
    assert "other" in printed
    assert "0.5000" in printed


def test_seeds_of_one_setting_are_grouped(tmp_path, capsys):
    runs = [
        made_up(tmp_path / "a", evaluated(2, 0.5), evaluated(4, 0.6), seed=1),
        made_up(tmp_path / "b", evaluated(4, 0.8), evaluated(6, 0.9), seed=5),
        made_up(tmp_path / "c", evaluated(4, 0.1), seed=1, beta=0.2),
    ]
    groups = group_runs([measured(run) for run in runs])
    assert [[run.folder.name for run in entry] for entry in groups] == [["a", "b"], ["c"]]
    assert main(["plot", *map(str, runs), "--group", "--output", str(tmp_path / "figure.png")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "0.7000" in printed
    assert "± 0.1414" in printed
    curve = mean_curve([{2: 0.5, 4: 0.6}, {4: 0.8, 6: 0.9}])
    assert curve.steps == [4]
    assert [curve.means[0], curve.lows[0], curve.highs[0]] == pytest.approx([0.7, 0.7 - 0.02**0.5, 0.7 + 0.02**0.5])


def test_the_axis_can_count_examples(tmp_path, capsys):
    sizes = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    run = made_up(tmp_path / "run", evaluated(2, 0.5), evaluated(4, 0.6), processes=3)
    made = record(run)
    made["config"]["trainer"] = sizes
    write_signed(run / "run.json", made)
    for across, last in (("steps", "4"), ("examples", "96"), ("examples-per-process", "32")):
        words = ["plot", str(run), "--across", across, "--smooth", "0.9", "--output", str(tmp_path / "figure.png")]
        assert main(words) == 0
        assert [line.split()[3] for line in capsys.readouterr().out.splitlines() if line.startswith("│")] == [last]


@pytest.mark.parametrize("values", [[1.0], [1.0, 2.0, 0.0, 4.0]])
@pytest.mark.parametrize("weight", [0.0, 0.6, 0.95])
def test_smoothing_is_the_weighted_mean_of_what_came_before(values, weight):
    weights = [weight ** (len(values) - 1 - place) for place in range(len(values))]
    expected = sum(w * value for w, value in zip(weights, values, strict=True)) / sum(weights)
    assert smoothed(values, weight)[-1] == pytest.approx(expected)


def test_window_means_are_of_the_second_half():
    points = {step: {"kl/chosen": float(step), "x": 1.0} for step in (0, 2, 4, 6, 8)} | {7: {"kl/chosen": 7.0}}
    assert second_half(dict(sorted(points.items()))) == {"kl/chosen": (4 + 6 + 7 + 8) / 4}
    assert second_half({0: {"kl/chosen": 0.0}, 8: {"kl/chosen": 1.0}}) == {}


def swept(folder: Path, *rows: dict[str, Any], seed: int = 1, **loss: Any) -> Path:
    made_up(folder, *rows, seed=seed)
    made = record(folder)
    made["config"] |= {"loss": {"name": "ra-dpo", **loss}, "variant": "released"}
    write_signed(folder / "run.json", made)
    return folder


@pytest.mark.usefixtures("pictures")
def test_a_metric_is_drawn_against_alpha(tmp_path, capsys, fails):
    rows = evaluated(0, 0.0), evaluated(2, 0.4), evaluated(4, 0.6)
    tail = {"name": "released_tail", "level": 0.97, "split": True, "replace_logps": False}
    runs = [
        swept(tmp_path / "a", *rows, alpha=0.3, risk=tail),
        swept(tmp_path / "b", *rows, alpha=0.5, risk=tail),
        swept(tmp_path / "c", evaluated(2, 0.7), evaluated(4, 0.7), alpha=0.5, risk=tail, seed=5),
        swept(tmp_path / "d", *rows, alpha=0.3, risk={"name": "entropic", "mu": 5.0}),
        swept(tmp_path / "e", *rows, alpha=0.3, name="tdpo"),
    ]
    words = ["plot", *map(str, runs), "--output", str(tmp_path / "figure.png"), "--against", "alpha"]
    assert main([*words, "--published", "pythia-1.4b"]) == 0
    assert "entropic" in capsys.readouterr().out
    panels = against_alpha([measured(run) for run in runs], ["kl/chosen"], "pythia-1.4b")
    (lines,) = panels.values()
    ours = lines["Ra-DPO2, released_tail 0.97"]
    assert (ours.steps, ours.means) == ([0.3, 0.5], pytest.approx([0.5, 0.6]))
    assert ours.highs == pytest.approx([0.5, 0.6 + 0.02**0.5])  # two seeds at .5: .5 and .7
    published = {label: curve.means[0] for label, curve in lines.items() if "published" in label}
    assert published == {  # Figure 4 at alpha .3
        "TDPO2, published": 0.897,
        "Ra-DPO2, released_tail 0.97, published": 0.732,
        "Ra-DPO2, entropic 5, published": 0.543,
    }
    first = swept(tmp_path / "f", *rows, alpha=None)
    message = fails("plot", str(first), "--against", "alpha", "--output", str(tmp_path / "figure.png"))
    assert "loss=ra-dpo has no alpha" in message
    short = swept(tmp_path / "g", evaluated(4, 0.1), alpha=0.5, risk=tail)
    assert "one evaluation in the second half" in fails(
        "plot", str(short), "--against", "alpha", "--output", str(tmp_path / "figure.png")
    )


def judged(folder: Path, wins: int, ties: int, losses: int) -> Path:
    return made_up(folder, metrics={"wins": wins, "ties": ties, "losses": losses})


def test_outcomes_are_bars_with_a_sign_test(tmp_path, capsys, fails):
    output = tmp_path / "outcomes.png"
    assert main(["outcomes", str(judged(tmp_path / "mine", 9, 3, 1)), "--published", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert output.read_bytes().startswith(b"\x89PNG")
    # 2 (1 + 10) / 2^10: as extreme as 9 of 10, on either side.
    assert "0.021" in next(line for line in printed.splitlines() if "mine" in line)
    assert "274" in printed
    assert "there is nothing to draw" in fails("outcomes", "--output", str(output))
    other = made_up(tmp_path / "other")
    assert "no wins, ties and losses" in fails("outcomes", str(other), "--output", str(output))


def test_a_leaderboard_is_read_beside_table_1(tmp_path, capsys, fails):
    board = tmp_path / "leaderboard.csv"
    board.write_text(
        ",length_controlled_winrate,win_rate,standard_error,n_total,lc_standard_error\n"
        "mine,54.321,51.25,1.75,805,0.5\nother,,40.0,1.5,805,\n"
    )
    assert main(["leaderboard", str(board), "--published"]) == 0
    lines = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert lines[0] == ["mine", "51.2", "±", "1.8", "54.3", "±", "0.5"]
    assert lines[1] == ["other", "40.0", "±", "1.5"]
    assert ["published:", "ra-dpo2", "52.1", "±", "1.8", "55.7", "±", "0.5"] in lines
    assert len(lines) == 2 + 7
    board.write_text("a,b\n1,2\n")
    assert "not AlpacaEval's leaderboard" in fails("leaderboard", str(board))
    assert "no such file" in fails("leaderboard", str(tmp_path / "none.csv"))


def test_alpacaeval_is_sampled_as_released():
    config = composed(APP, "output_dir=x", "model=tiny", "data=alpacaeval", verb="sample")
    keys = ("temperature", "top_p", "max_new_tokens", "seed", "max_prompt_length")
    assert [config[key] for key in keys] == [0.7, 0.95, 2048, 0, 256]
    assert list(config["data"]["sets"]) == ["alpacaeval"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--smooth", "1"], "--smooth=1.0 must be in [0, 1)"),
        (["--published", "pythia-1.4b"], "--published goes with --against alpha"),
        (["--against", "alpha", "--group"], "leave --smooth, --group and --across out"),
    ],
)
def test_options_of_a_plot_that_mean_nothing(tmp_path, fails, words, message):
    run = made_up(tmp_path / "run", evaluated(1, 0.5))
    assert message in fails("plot", str(run), "--output", str(tmp_path / "figure.png"), *words)


def test_recipes_name_runs(tmp_path, capsys):
    runs = [made_up(tmp_path / name / "run", evaluated(1, 0.5), recipe=recipe) for name, recipe in ("ax", "by")]
    assert main(["plot", *map(str, runs), "--output", str(tmp_path / "figure.png")]) == 0
    rows = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert rows == ["x", "y"]


def test_mistakes_in_plotting(tmp_path, fails):
    run, output = made_up(tmp_path / "run", {"step": 1, "loss": 0.5}), tmp_path / "figure.png"
    assert "no evaluation of held-out pairs" in fails("plot", str(run), "--output", str(output))
    assert "no run record there" in fails("plot", str(tmp_path / "none"), "--output", str(output))
    assert "must end in .png" in fails("plot", str(run), "--output", "figure.pdf")
    assert "--output" in fails("plot", str(run))
    (run / "metrics.jsonl").write_text('{"step": 1, "eval')
    assert "no evaluation of held-out pairs" in fails("plot", str(run), "--output", str(output))
    apart = [made_up(tmp_path / f"s{step}", evaluated(step, 0.5), seed=step) for step in (1, 2)]
    assert "leave --group out" in fails("plot", *map(str, apart), "--group", "--output", str(output))
    assert not output.exists()


# sample


def test_samples_are_in_alpacaeval_s_format_and_go_on_where_they_stopped(tmp_path):
    whole = tmp_path / "policy"
    assert main(["sample", *SAMPLE, f"output_dir={whole}"]) == 0
    outputs = json.loads((whole / "model_outputs.json").read_text())
    assert len(outputs) == 5
    assert all(row.keys() == {"instruction", "output", "generator"} for row in outputs)
    assert {row["generator"] for row in outputs} == {"tiny:llama"}
    lines = (whole / "responses-0.jsonl").read_bytes().splitlines(keepends=True)
    # Stopped within the line of the fourth prompt: the third is sampled again, since its batch was not complete.
    for name, keep in (("torn", b"".join(lines[:3]) + lines[3][:9]), ("even", b"".join(lines[:2])), ("none", b"")):
        interrupt(whole, "responses-0.jsonl", keep, tmp_path / name)
        assert main(["sample", *SAMPLE, f"output_dir={tmp_path / name}"]) == 0
        assert (tmp_path / name / "responses-0.jsonl").read_bytes() == b"".join(lines)
        assert json.loads((tmp_path / name / "model_outputs.json").read_text()) == outputs


def test_responses_to_other_prompts_are_not_taken_over(tmp_path, fails):
    file, whole = tmp_path / "prompts.jsonl", tmp_path / "whole"
    file.write_text('{"instruction": "Count."}\n{"prompt": [{"role": "user", "content": "Sing."}]}\n')
    words = ["sample", "model=tiny", f"prompts={file}", "max_new_tokens=2", "generator=mine", "temperature=0"]
    assert main([*words, f"output_dir={whole}"]) == 0
    outputs = json.loads((whole / "model_outputs.json").read_text())
    assert [(row["instruction"], row["generator"]) for row in outputs] == [("Count.", "mine"), ("Sing.", "mine")]
    kept = (whole / "responses-0.jsonl").read_bytes()
    interrupt(whole, "responses-0.jsonl", kept, tmp_path / "part")
    file.write_text('{"instruction": "Dance."}\n{"instruction": "Sing."}\n')
    assert "data 'prompts' is not what it was" in fails(*words, f"output_dir={tmp_path / 'part'}")
    assert (tmp_path / "part" / "responses-0.jsonl").read_bytes() == kept


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["temperature=-1"], "temperature=-1.0 must be at least 0"),
        (["top_p=0"], "top_p=0.0 must be above 0"),
        (["batch_size=0"], "batch_size=0 must be at least 1"),
        (["backend=vllmm"], "did you mean 'vllm'?"),
        (["model.name=/nowhere"], "no such folder"),
        (["prompts=/nowhere.jsonl"], "/nowhere.jsonl: no such file"),
        (["data.sets.demo.eval_path=demo:none"], "no such shipped data set"),
    ],
)
def test_mistakes_in_sampling_leave_nothing(tmp_path, fails, words, message):
    assert message in fails("sample", *SAMPLE, *words, f"output_dir={tmp_path / 'a' / 'out'}")
    assert not (tmp_path / "a").exists()


def test_vllm_is_used_where_it_is_asked_for(tmp_path, fails, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    words = ["sample", *SAMPLE, "backend=vllm"]
    assert "vLLM, which is not installed" in fails(*words, f"output_dir={tmp_path / 'out'}")

    class Engine:
        def __init__(self, model: str, **_: Any) -> None:
            assert Path(model).is_dir()

        def generate(self, rows: list[Any], params: Any, use_tqdm: bool) -> list[Any]:
            assert all(isinstance(row["prompt_token_ids"][0], int) for row in rows)
            assert all(of.stop == ["<|im_end|>"] for of in params)
            return [SimpleNamespace(outputs=[SimpleNamespace(text=f" {of.seed}<|im_end|>x")]) for of in params]

    stub: Any = ModuleType("vllm")
    stub.LLM, stub.SamplingParams = Engine, SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", stub)
    assert main([*words, f"output_dir={tmp_path / 'out'}"]) == 0
    outputs = json.loads((tmp_path / "out" / "model_outputs.json").read_text())
    assert [row["output"] for row in outputs] == ["0", "1", "2", "3", "4"]  # each prompt has a seed of its own


def test_responses_begin_with_the_prefix_and_are_returned_without_it(tmp_path, monkeypatch):
    """CSFT's control token: between the header of the answer and the answer, as in training."""
    good, prompt = "<|unk|>", [{"role": "user", "content": "hello"}]
    tokenizer = tiny_tokenizer()
    plain, prefixed, short = (
        transformers_sampler(ModelConfig(name="tiny:llama"), SamplingRules(max_new_tokens=6, temperature=0.0, **rules))
        for rules in ({}, {"response_prefix": good}, {"response_prefix": good, "max_prompt_length": 2})
    )
    asked = prefixed.encode(prompt)
    assert asked == plain.encode(prompt) + tokenizer.encode(good)
    assert short.encode(prompt) == plain.encode(prompt)[-2:] + tokenizer.encode(good)  # the prefix is never cut
    model = AutoModelForCausalLM.from_pretrained(tiny_folder("llama"))
    ids = model.generate(torch.tensor([asked]), max_new_tokens=6, do_sample=False)[0, len(asked) :]
    ((found,),) = prefixed.generate([asked], 0)
    assert found == cut(tokenizer.decode(ids, skip_special_tokens=True), turn_end(tokenizer))
    assert plain.generate([plain.encode(prompt)], 0) != [[found]]

    class Engine:
        def __init__(self, **_: Any) -> None:
            pass

        def generate(self, rows: list[Any], params: Any, use_tqdm: bool) -> list[Any]:
            assert all(tokenizer.decode(row["prompt_token_ids"]).endswith(f"assistant\n{good}") for row in rows)
            return [SimpleNamespace(outputs=[SimpleNamespace(text=" yes")]) for _ in rows]

    stub: Any = ModuleType("vllm")
    stub.LLM, stub.SamplingParams = Engine, SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", stub)
    words = ["sample", *SAMPLE, "backend=vllm", f"response_prefix='{good}'"]
    assert main([*words, f"output_dir={tmp_path / 'out'}"]) == 0
    outputs = json.loads((tmp_path / "out" / "model_outputs.json").read_text())
    assert {row["output"] for row in outputs} == {"yes"}


def test_padding_on_the_left_changes_no_greedy_response():
    sampler = transformers_sampler(ModelConfig(name="tiny:llama"), SamplingRules(max_new_tokens=6, temperature=0.0))
    prompts = [[{"role": "user", "content": text}] for text in ("hello", "name three colours: red, green and blue")]
    ids = [sampler.encode(prompt) for prompt in prompts]
    assert len(ids[0]) < len(ids[1])
    assert sampler.generate(ids, 0) == [*sampler.generate(ids[:1], 0), *sampler.generate(ids[1:], 0)]


def test_a_response_ends_where_the_template_ends_a_turn():
    tokenizer = tiny_tokenizer()
    assert turn_end(tokenizer) == ("<|im_end|>",)
    assert cut(" yes<|im_end|>\n<|im_start|>user", turn_end(tokenizer)) == "yes"
    greedy = {"max_new_tokens": 12, "temperature": 0.0}
    prompt = [{"role": "user", "content": "hello"}]
    free = transformers_sampler(ModelConfig(name="tiny:llama"), SamplingRules(**greedy))
    ((whole,),) = free.generate([free.encode(prompt)], 0)
    stopped = transformers_sampler(ModelConfig(name="tiny:llama"), SamplingRules(**greedy, stop=(whole[3:5],)))
    assert stopped.generate([stopped.encode(prompt)], 0) == [[cut(whole, (whole[3:5],))]]
    short = transformers_sampler(ModelConfig(name="tiny:llama"), SamplingRules(max_prompt_length=3))
    assert short.encode(prompt) == free.encode(prompt)[-3:]


@given(count=st.integers(0, 30), at_once=st.integers(1, 7), processes=st.integers(1, 5))
def test_every_prompt_is_one_process_s_and_batches_are_the_same(count, at_once, processes):
    dealt = shares(count, at_once, processes)
    assert sorted(index for share in dealt for index in share) == list(range(count))
    for share in dealt:
        assert all(index % at_once == place % at_once for place, index in enumerate(share))


def test_names_of_models_and_instructions():
    assert model_label("runs/ra-dpo/model") == "ra-dpo"
    assert model_label("EleutherAI/pythia-1.4b") == "pythia-1.4b"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    assert instruction_text(turns[:1]) == "a"
    assert instruction_text(turns) == "user: a\n\nassistant: b\n\nuser: c"


def test_what_an_interruption_left_of_a_line_is_cut_off(tmp_path):
    file = tmp_path / "lines.jsonl"
    assert recover_lines(file) == []
    file.write_text("ä\u2028\nb\nhal")
    assert recover_lines(file) == ["ä\u2028", "b"]
    assert file.read_text() == "ä\u2028\nb\n"
    file.write_text("half")
    assert recover_lines(file) == []
    assert file.read_text() == ""


@pytest.mark.distributed
def test_two_processes_sample_what_one_does(tmp_path):
    import subprocess

    code = "import sys; from reproalign.radpo.cli import main; sys.exit(main())"
    for name, more in (("one", []), ("two", ["launch=ddp", "launch.processes=2"])):
        command = [sys.executable, "-c", code, "sample", *SAMPLE, *more, f"output_dir={tmp_path / name}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = ((tmp_path / name / "model_outputs.json").read_text() for name in ("one", "two"))
    assert one == two


# judge


class Judge(ThreadingHTTPServer):
    """An OpenAI-compatible server on this machine; it prefers the answer with more 'good', and A among equals."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.failures: list[int] = []  # statuses of the next requests
        self.reply: bytes | None = None
        self.answers = 10**9  # how many are given before status 401
        self.lock = threading.Lock()

    @property
    def words(self) -> list[str]:
        return [f"endpoint.base_url=http://127.0.0.1:{self.server_port}/v1", "endpoint.model=m", "endpoint.pause=0"]


class Handler(BaseHTTPRequestHandler):
    server: Judge

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append(request)
            self.server.keys.append(self.headers["Authorization"])
            status = self.server.failures.pop(0) if self.server.failures else 200
            self.server.answers -= status == 200
            status = 401 if self.server.answers < 0 else status
        assert self.path == "/v1/chat/completions"
        text = request["messages"][0]["content"]
        a, b = text.split("=== Answer A ===")[1].split("=== Answer B ===")
        chosen = "B" if b.count("good") > a.count("good") else "A"
        body = json.dumps({"choices": [{"message": {"content": f"[[B]]? No.\n[[{chosen}]]"}}]}).encode()
        self.send_response(status)
        self.end_headers()
        self.wfile.write(self.server.reply or body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    judge = Judge()
    thread = threading.Thread(target=judge.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield judge
    judge.shutdown()
    judge.server_close()
    thread.join()


FIRST, SECOND = ["good", "good", "bad", "bad"], ["bad", "good", "good", "bad"]


@pytest.fixture
def files(tmp_path) -> list[str]:
    words = []
    for name, outputs in (("first", FIRST), ("second", SECOND)):
        rows = [{"instruction": f"Q{n}", "output": text, "generator": name} for n, text in enumerate(outputs)]
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
        words.append(f"{name}={tmp_path / f'{name}.json'}")
    return words


def judgments(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "judgments.jsonl").read_text().splitlines()]


def test_a_judge_s_verdicts_in_both_orders(tmp_path, files, server, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server.failures = [503, 429]  # passing ones are tried again
    folder = tmp_path / "out"
    assert main(["judge", *files, *server.words, "endpoint.request.max_tokens=null", f"output_dir={folder}"]) == 0
    metrics = record(folder)["metrics"]
    counts = {name: metrics[name] for name in ("wins", "ties", "losses", "unreadable", "win_rate")}
    assert counts == {"wins": 1, "ties": 2, "losses": 1, "unreadable": 0, "win_rate": 0.5}
    assert metrics["consistent"] == 0.5  # equal answers: the one shown first is preferred
    assert metrics["shown_first"] == 0.75
    assert len(server.requests) == 8 + 2
    assert set(server.keys) == {"Bearer secret"}
    assert server.requests[0].keys() == {"model", "messages", "temperature"}
    assert "secret" not in "".join(path.read_text() for path in folder.iterdir())
    assert "first against second" in capsys.readouterr().out
    assert [json.loads(line)["score"] for line in (folder / "verdicts.jsonl").read_text().splitlines()] == [
        1,
        0.5,
        0,
        0.5,
    ]


def test_answers_survive_an_endpoint_that_goes_down(tmp_path, files, server, fails):
    folder = tmp_path / "out"
    words = ["judge", *files, *server.words, "endpoint.parallel=2", f"output_dir={folder}"]
    server.answers = 3
    error = fails(*words)
    assert "status 401" in error
    assert "the same command goes on" in error
    assert len(judgments(folder)) == 3
    assert record(folder)["status"] == "failed"
    server.answers, server.requests = 10**9, []
    with (folder / "judgments.jsonl").open("a") as stream:
        stream.write('{"index": 1, "sho')  # a line that was not written to its end
    assert main(words) == 0
    assert len(server.requests) == 5
    assert sorted((row["index"], row["shown_first"]) for row in judgments(folder)) == sorted(
        (index, side) for index in range(4) for side in ("first", "second")
    )
    assert record(folder)["metrics"]["win_rate"] == 0.5


def test_an_endpoint_that_never_answers_leaves_nothing(tmp_path, files, server, fails):
    words = ["judge", *files, f"output_dir={tmp_path / 'a' / 'out'}"]
    down = Judge()
    down.server_close()
    error = fails(*words, *down.words, "endpoint.retries=1")
    assert "cannot be reached" in error
    assert "check endpoint.base_url" in error
    server.reply = b"<html>"
    assert "OpenAI-compatible?" in fails(*words, *server.words)
    assert "must begin with http" in fails(*words, "endpoint.model=m", "endpoint.base_url=file:///etc/passwd")
    assert not (tmp_path / "a").exists()


def test_questions_are_answered_elsewhere(tmp_path, files, server, fails):
    folder = tmp_path / "questions"
    assert main(["judge", *files, f"output_dir={folder}"]) == 0
    rows = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    assert len(rows) == 8
    assert server.requests == []
    file = tmp_path / "answers.jsonl"

    def give(*rows: dict[str, Any] | str) -> list[str]:
        file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return ["judge", *files, f"answers={file}", f"output_dir={tmp_path / 'out'}"]

    answered = [{**row, "answer": "[[A]]" if row["index"] else "no idea"} for row in rows]
    assert "no answer for index=3, shown_first=second" in fails(*give(*answered[:-1]))
    assert "line 1: not valid JSON" in fails(*give('{"index"'))
    assert "line 1: index, shown_first and answer (text) are needed" in fails(*give(rows[0]))
    assert "another instruction" in fails(*give({**answered[0], "instruction": "Q9"}))
    assert "both answers and endpoint.model" in fails(*give(*answered), "endpoint.model=m")
    assert not (tmp_path / "out").exists()
    assert main(give(*answered)) == 0
    metrics = record(tmp_path / "out")["metrics"]
    assert (metrics["ties"], metrics["unreadable"], metrics["shown_first"]) == (3, 1, 1.0)
    for row in answered:
        row["answer"] = "no idea"
    assert main([*give(*answered)[:-1], f"output_dir={tmp_path / 'mute'}"]) == 0
    assert record(tmp_path / "mute")["metrics"]["win_rate"] is None


def test_pairrm_judges_in_place_of_an_endpoint(tmp_path, files, fails, capsys):
    """The same files and table; verdicts by the model's logits, which a repeated command does not compute again."""
    model = save_tiny_pairrm(tmp_path / "pairrm")
    folder = tmp_path / "out"
    words = ["judge", *files, f"pairrm.model={model}", f"output_dir={folder}"]
    assert "both endpoint.model and pairrm.model" in fails(*words, "endpoint.model=m")
    assert "pairrm.dtype 'int8'" in fails(*words, "pairrm.dtype=int8")
    assert not folder.exists()
    assert main(words) == 0
    assert "first against second" in capsys.readouterr().out
    assert [row.keys() & {"index", "shown_first", "logit", "answer"} for row in judgments(folder)] == [
        {"index", "shown_first", "logit"}
    ] * 8
    metrics = record(folder)["metrics"]
    assert metrics["wins"] + metrics["ties"] + metrics["losses"] == 4
    assert metrics["mean_logit"]["ties"] == 2  # the responses are equal in two of the four


def test_mistakes_in_the_files_of_a_judge(tmp_path, files, fails):
    folder, second = tmp_path / "out", tmp_path / "second.json"
    words = ["judge", *files, f"output_dir={folder}"]
    rows = json.loads(second.read_text())
    second.write_text(json.dumps([rows[0], {**rows[1], "instruction": "Another"}]))
    assert "row 2: the two files have different instructions ('Q1' and 'Another')" in fails(*words)
    second.write_text(json.dumps(rows[:3]))
    assert "4 and 3 instructions" in fails(*words)
    second.write_text("[{")
    assert "second.json: not valid JSON" in fails(*words)
    second.write_text(json.dumps([{"instruction": "Q0", "generator": "g"}]))
    assert "second.json row 1: column 'output' (text) is missing" in fails(*words)
    second.unlink()
    assert "second.json: cannot be read" in fails(*words)
    second.write_text(json.dumps(rows))
    (tmp_path / "template.txt").write_text("{instruction} {answer_a}")
    assert "no place {answer_b}" in fails(*words, f"template={tmp_path / 'template.txt'}")
    assert "template=/nowhere: cannot be read" in fails(*words, "template=/nowhere")
    assert "confidence=1.0 must be above 0 and below 1" in fails(*words, "confidence=1")
    assert not folder.exists()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [("[[A]]", 1), ("so [[b]]", 0), ("[[A]], no: [[ TIE ]]", 0.5), ("[[C]]", 0.5), ("A", None), ("", None)],
)
def test_the_last_verdict_counts(answer, expected):
    assert verdict(answer) == expected


def test_braces_in_answers_mean_nothing():
    assert (
        question("{answer_b}", "{instruction}", "b", "{instruction}|{answer_a}|{answer_b}")
        == "{answer_b}|{instruction}|b"
    )
    assert check_template(TEMPLATE) == TEMPLATE


verdicts = st.lists(st.tuples(*[st.sampled_from([0.0, 0.5, 1.0, None])] * 2), min_size=1, max_size=30)


@given(verdicts)
def test_exchanging_the_models_exchanges_the_win_rate(pairs):
    ours, theirs = win_rate(pairs), win_rate([(right, left) for left, right in pairs])
    assert ours.wins + ours.ties + ours.losses + ours.unreadable == len(pairs)
    assert (ours.wins, ours.ties, ours.consistent, ours.shown_first) == (
        theirs.losses,
        theirs.ties,
        theirs.consistent,
        theirs.shown_first,
    )
    if ours.win_rate is not None:
        assert ours.win_rate == pytest.approx(1 - theirs.win_rate)
        assert (ours.low, ours.high) == pytest.approx((1 - theirs.high, 1 - theirs.low))
        assert ours.low <= ours.win_rate <= ours.high


@given(count=st.integers(1, 200), data=st.data(), confidence=st.sampled_from([0.5, 0.9, 0.95]))
def test_wilson_s_ends_are_where_the_score_test_rejects(count, data, confidence):
    """The shares p with |p̂ - p| = z √(p (1 - p)/n)."""
    from statistics import NormalDist

    share = data.draw(st.integers(0, count)) / count
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    for end in wilson(share * count, count, confidence):
        assert abs(share - end) == pytest.approx(z * math.sqrt(end * (1 - end) / count), abs=1e-7)
    with pytest.raises(ValueError, match="needs observations"):
        wilson(0.0, 0)
