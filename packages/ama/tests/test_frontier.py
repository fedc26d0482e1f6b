"""``ama frontier``: which models it plans, that each is evaluated once, resumption, intervals, what it refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from reproalign.ama.cli import APP, FRONTIER, main
from reproalign.ama.frontier.collected import Measured, MeasuredModel, read_measured
from reproalign.ama.frontier.config import FrontierConfig, LearnedSweep, PartSweep, PatternSweep
from reproalign.ama.frontier.entries import Entry, Model
from reproalign.ama.frontier.fronts import all_fronts
from reproalign.ama.frontier.plan import Chain
from reproalign.ama.frontier.settings import check_settings
from reproalign.ama.frontier.sweeps import make_sweeps
from reproalign.ama.points import Measure, Point, read_points
from reproalign.common.config.model import ModelConfig
from reproalign.common.invocation import Invocation, structured
from reproalign.common.launch.children import Child
from reproalign.common.models.tiny import save_tiny
from reproalign.common.models.tiny_tokenizers import tiny_tokenizer
from reproalign.common.options.compose import compose
from reproalign.common.records.fingerprints import identity_of
from reproalign.common.reward.rules import RewardRules
from reproalign.common.signing import write_signed
from reproalign.common.testing import refusal, run_command
from reproalign.common.testing.pairrm import save_tiny_pairrm
from reproalign.common.testing.tiny import tiny_reward_model

CODE = "import sys; from reproalign.ama.cli import main; sys.exit(main())"
EVALUATED = {"prompts": "p.jsonl", "reward": "r"}


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a folder with prompts, texts, two models that fit, one that does not, and a reward model."""
    folder = tmp_path_factory.mktemp("made")
    write(folder / "prompts.jsonl", [{"prompt": text} for text in ("Hi", "Sing a song", "Why is that?", "Go", "One")])
    write(
        folder / "texts.jsonl", [{"text": text} for text in ("the cat sat on a mat", "dogs run home", "two red dogs")]
    )
    for name, seed in (("pre", 1), ("post", 2), ("l2", 3)):
        save_tiny(folder / name, seed=seed)
    save_tiny(folder / "other", "gpt_neox")
    reward = tiny_reward_model(seed=3)
    with torch.no_grad():
        reward.score.weight.mul_(20)
    reward.save_pretrained(folder / "reward")
    tiny_tokenizer().save_pretrained(folder / "reward")
    (folder / "reward" / "reward.json").write_text(json.dumps(RewardRules(layout="lmflow").note()))
    return folder


def words_of(made: Path, output: Path, *words: str) -> list[str]:
    evaluated = [f"evaluate.prompts={made / 'prompts.jsonl'}", f"evaluate.reward={made / 'reward'}"]
    quick = ["evaluate.layout=lmflow", "evaluate.max_new_tokens=4", f"evaluate.texts=[{made / 'texts.jsonl'}]"]
    models = [f"pre={made / 'pre'}", f"post.rsf={made / 'post'}"]
    return [
        "frontier",
        f"output_dir={output}",
        *models,
        *evaluated,
        *quick,
        "alphas=[0,0.5,1]",
        "resamples=100",
        *words,
    ]


def options(**given) -> FrontierConfig:
    fixed = {"output_dir": "x", "pre": "a", "post": {"rsf": "b"}, "model": ModelConfig(name=""), "evaluate": EVALUATED}
    config = FrontierConfig(**fixed, **given)
    check_settings(config)
    return config


def models_of(**given) -> dict[str, list[str]]:
    """Return series -> models."""
    found: dict[str, list[str]] = {}
    for entry in make_sweeps(options(**given)).entries:
        found.setdefault(entry.series, []).append(entry.model)
    return found


def test_points_that_are_one_model_share_it():
    given = {"alphas": [0.0, 0.5, 1.0], "parts": PartSweep(["input", "output"]), "patterns": PatternSweep([[0, 0, 0]])}
    learned = LearnedSweep(["block3"], {"rsf": "d"})
    found = models_of(tensors="released_ma", hma=learned, **given)
    assert found["MA (rsf)"] == ["rsf", "rsf-ma-0.5", "pre"]
    assert found["Input part (rsf)"] == ["rsf", "rsf-paper3-input-0.5", "rsf-paper3-input-1"]
    assert found["Pattern (a|a|a) (rsf)"] == found["MA (rsf)"]
    assert found["HMA block3 (rsf)"] == ["rsf", "rsf-hma-block3-0.5", "pre"]
    for rule, ends in (("linear_head_post", ["rsf", "rsf-ma-1"]), ("linear_head_pre", ["rsf-ma-0", "pre"])):
        found = models_of(tensors=rule, hma=learned, **given)
        for series in ("MA (rsf)", "Pattern (a|a|a) (rsf)", "HMA block3 (rsf)"):
            assert [found[series][0], found[series][-1]] == ends
        assert found["Output part (rsf)"][0] == ends[0]
    sweeps = make_sweeps(options(hma=learned, **given))
    names = [model.name for model in sweeps.models]
    assert len(names) == len(set(names)) == 2 + 2 + 4 + 1


def test_a_baseline_that_is_a_model_already_there_shares_it():
    sweeps = make_sweeps(options(models={"early": {"model": "b", "method": "early", "value": 10}}))
    assert [entry.model for entry in sweeps.entries if entry.method == "early"] == ["rsf"]


def test_ratios_of_post_are_those_of_pre_turned_around():
    post = PatternSweep([[0, 0.1, 0.1]], alphas=[0.8])
    pre = PatternSweep([[0, -0.1, -0.1]], alphas=[0.2])
    turned = make_sweeps(options(alphas=[0.1, 1.0], alpha_on="post", patterns=post))
    assert turned == make_sweeps(options(alphas=[0.0, 0.9], patterns=pre))
    (entry,) = [entry for entry in turned.entries if entry.method == "pattern"]
    assert (entry.alpha, entry.value) == (pytest.approx(0.4 / 3), "0.2|0.1|0.1")


def test_patterns_that_leave_the_models_are_left_out():
    found = models_of(alphas=[0.0, 0.1, 0.2], patterns=PatternSweep([[0, -0.1, -0.2]]))
    assert len(found["Pattern (a|a-0.1|a-0.2) (rsf)"]) == 1


def planned(made, *words: str):
    from reproalign.ama.frontier.plan import make_plan

    composed = compose(APP.package, FRONTIER.config_name, FRONTIER.schema, words_of(made, Path("runs/x"), *words)[1:])
    invocation = Invocation(["ama", "frontier"], APP.package, "frontier", FRONTIER.schema, "", composed.config)
    return make_plan(structured(invocation.schema, invocation.config), invocation)


def test_every_child_has_the_seed_the_variant_and_the_rule(made):
    hma = ["hma.levels=[block3]", f"hma.rows.rsf={made / 'texts.jsonl'}", "hma.adapt.solver=exact"]
    suite = ["evaluate_on=ama", "benchmarks.suite.tasks=[arc_easy]"]
    more = ["parts.parts=[input]", "graft=[0.1]", "head=post"]
    plan = planned(made, "seed=7", "tensors=linear_head_pre", *more, *hma, *suite)
    for child in plan.children:
        config = child.invocation.config
        if child.invocation.verb != "average" and not child.name.startswith("benchmarks"):
            assert config["seed"] == (8 if child.name == "evaluate-pre-again" else 7), child.name
    chain = plan.chains["rsf-hma-block3-0.5"]
    assert [child.name.partition("-")[0] for child in chain.children] == ["adapt", "average", "evaluate", "benchmarks"]
    assert chain.adapt.invocation.config["alpha"] == 0.5
    assert chain.adapt.invocation.config["solver"] == "exact"
    assert chain.average.invocation.config["ratios"] == "runs/x/adapt-rsf-hma-block3-0.5"
    averages = [chain.average.invocation.config for chain in plan.chains.values() if chain.average]
    rules = {(config["tensors"], config["head"]) for config in averages if config["method"] == "ma"}
    assert rules == {("linear_head_pre", "post")}
    assert (chain.adapt.invocation.config["tensors"], chain.adapt.invocation.config["head"]) in rules
    assert plan.chains["rsf-ma-1"].average  # its head is post's, so that it is not pre
    assert plan.chains["rsf-paper3-input-0.5"].average.invocation.config["only"] == "input"
    assert plan.chains["rsf-graft-0.1"].average.invocation.config["fraction"] == 0.1


def test_a_child_of_many_is_composed_as_it_would_be_alone(made):
    verbs = {verb.schema: verb for verb in APP.verbs}
    for child in planned(made, "evaluate_on=ama", "graft=[0.1]", "parts.parts=[input]").children:
        verb = verbs[child.invocation.schema]
        words = child.invocation.command[1 + len(verb.name.split()) :]
        assert compose(APP.package, verb.config_name, verb.schema, words).config == child.invocation.config


def test_win_rates_are_against_the_responses_of_pre_or_a_file(made):
    judged = ["x=win_rate", "evaluate.reward=null", "win_rate.judge={pairrm: {model: folder}}"]
    plan = planned(made, *judged)
    assert plan.chains["pre"].judge is None
    config = plan.chains["rsf-ma-0.5"].judge.invocation.config
    assert config["first"] == "runs/x/evaluate-rsf-ma-0.5/outputs.json"
    assert config["second"] == "runs/x/evaluate-pre/outputs.json"
    plan = planned(made, *judged, "win_rate.against=answers.json")
    assert plan.chains["pre"].judge.invocation.config["second"] == "answers.json"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["alphas=[0,1.2]"], "alphas[1]=1.2 must be from 0 to 1"),
        (["alphas=[]"], "alphas=[] names no ratio"),
        (["evaluate.reward=null"], "evaluate.reward is not set; give the reward model"),
        (["evaluate.prompts=null"], "evaluate.prompts is not set"),
        (["evaluate.reward={made}/pre"], "evaluate-pre: reward={made}/pre is no reward model"),
        (["evaluate.n=1,2"], "evaluate.n takes one value; write sweep.evaluate.n=[A,B] to run each"),
        (["evaluate.n=0"], "evaluate-pre: n=0 must be at least 1"),
        (["evaluate.seed=3"], "evaluate.seed is set by frontier itself"),
        (["evaluate.promts=x"], "evaluate-pre: unknown key 'promts' (did you mean 'prompts'?)"),
        (["pre={made}/nowhere"], "{made}/nowhere"),
        (["post.rsf={made}/other"], "average-rsf-ma-0.5: "),
        (["post.pre={made}/post"], "post.pre: 'pre' is the model before alignment"),
        (["post.a/b={made}/post"], "post.a/b"),
        (["tensors=linear_pre"], "unknown tensors 'linear_pre'"),
        (["head=learned"], "unknown head 'learned'"),
        (["parts.parts=[inputs]"], "parts.parts: 'inputs' is no part"),
        (["parts.parts=[input]", "parts.level=block6"], "input is one of three parts, and parts.level=block6 has 6"),
        (["parts.parts=[input]", "parts.level=9#3"], "split points must rise"),
        (["patterns.offsets=[[0,0.1]]"], "2 offsets for the 3 parts of patterns.level=block3"),
        (["patterns.offsets=[3]"], "patterns.offsets: 3 is no list of numbers"),
        (["hma.levels=[block3]"], "hma.rows.rsf is not set; give its D_θ"),
        (["hma.adapt.solver=exact"], "hma.levels=[] learns nothing"),
        (["hma.levels=[blok3]", "hma.rows.rsf=x"], "unknown parts 'blok3'"),
        (["graft=[0]"], "graft[0]=0.0 must be above 0 and at most 1"),
        (["models.l2={model: x}"], "models.l2.method is not set"),
        (["models.l2={model: x, method: l3}"], "unknown models.l2.method 'l3'"),
        (["models.l2={model: x, method: l2, lambda: 3}"], "unknown key of models.l2 'lambda'"),
        (["models.l2={model: x, method: l2, algorithm: dpo}"], "unknown models.l2.algorithm 'dpo'"),
        (["models.l2={model: x, method: ma}"], "unknown models.l2.method 'ma'"),
        (["models.rsf={model: x, method: l2}"], "models.rsf: post.rsf is called so too"),
        (["benchmarks.suite.limit=3"], "benchmarks.*: there is no suite to evaluate on"),
        (["evaluate_on=amma"], "did you mean 'ama'"),
        (["x=win_rate"], "win_rate.judge is not set"),
        (["win_rate.against=x"], "win_rate.* is read with x=win_rate alone"),
        (["model.name={made}/pre"], "model.name has no meaning here"),
        (["average.alpha=0.3"], "average.alpha is set by frontier itself"),
        (["average.dtype=float"], "average-rsf-ma-0.5: "),
        (["resamples=3"], "resamples=3 must be at least 100"),
        (["at_once=0"], "at_once=0 must be at least 1"),
    ],
)
def test_mistakes_are_found_before_anything_is_run(made, tmp_path, capsys, words, said):
    filled = [word.replace("{made}", str(made)) for word in words]
    found = refusal("ama", main, words_of(made, tmp_path / "run", *filled), capsys, untouched=tmp_path)
    assert said.replace("{made}", str(made)) in found


def test_the_plan_can_be_seen(made, tmp_path, capsys):
    assert main([*words_of(made, tmp_path / "run"), "--dry-run"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "5 points of 4 models; 7 child runs:"
    assert len(printed) == 8
    assert not (tmp_path / "run").exists()


def found_row(
    model: str, series: str, method: str, rewards: list[float], task: float, alpha: float | None
) -> MeasuredModel:
    x = Measure(float(np.mean(rewards)), 0.1)
    measured = Measured(x, np.asarray(rewards), {"reading": Measure(task, 0.0)}, {}, {}, "")
    algorithm = "" if method == "pre" else "rsf"
    entry = Entry(model, series, algorithm, method, alpha=alpha)
    return MeasuredModel(entry, Point(series, method, x, algorithm, alpha=alpha, metrics=measured.tasks), measured)


def test_margins_are_against_the_line_of_ma_and_paired_by_prompt():
    noise = np.random.default_rng(0).normal(0, 5, 50)
    rows = [
        found_row("pre", "θ_0", "pre", list(0 + noise), 20.0, None),
        found_row("rsf", "θ", "post", list(10 + noise), 10.0, None),
        found_row("rsf", "MA (rsf)", "ma", list(10 + noise), 10.0, 0.0),
        found_row("ma", "MA (rsf)", "ma", list(8 + noise), 16.0, 0.5),
        found_row("pre", "MA (rsf)", "ma", list(0 + noise), 20.0, 1.0),
        found_row("hma", "HMA (rsf)", "hma", list(9 + noise), 16.0, 0.5),
        found_row("best", "HMA (rsf)", "hma", list(11 + noise), 12.0, 0.2),
    ]
    front = all_fronts(rows, confidence=0.9, resamples=200, seed=0)["rsf"]["reading"]
    hma, best = front["margins"]
    assert hma["at_equal_x"]["value"] == pytest.approx(3.0)  # on the line at x=9: 13
    assert hma["at_equal_x"]["low"] == pytest.approx(3.0)  # all models move together: no spread at all
    assert hma["x_at_equal_ratio"]["value"] == pytest.approx(1.0)
    assert hma["task_at_equal_ratio"]["value"] == pytest.approx(0.0)
    assert best["at_equal_x"]["beyond"]
    assert best["at_equal_x"]["value"] is None
    assert best["task_at_equal_ratio"]["value"] == pytest.approx(12 - (10 + 0.4 * 6))
    assert {point["model"] for point in front["non_dominated"]} == {"pre", "hma", "best"}
    reference = [float(np.mean(noise)), 10.0]
    assert front["reference"] == pytest.approx(reference)
    ma = 10 * 0 + 8 * 6
    assert front["hypervolume"]["MA (rsf)"]["value"] == pytest.approx(ma)
    own = 11 * 2 + 9 * 4
    assert front["hypervolume"]["HMA (rsf)"]["value"] == pytest.approx(own)
    assert front["hypervolume"]["HMA (rsf)"]["minus_ma"]["value"] == pytest.approx(own - ma)
    assert front["hypervolume"]["HMA (rsf)"]["minus_ma"]["above_zero"] == 1.0


@pytest.mark.parametrize("weights", [{"sha256": "ab"}, {"commit": f"org/model@{'1f' * 20}"}])
def test_beside_win_rates_a_reward_is_told_and_no_more(tmp_path, weights):
    asked = Invocation([], "reproalign.ama", "evaluate", "", "", {})
    evaluated, compared = (Child(f"{verb}-rsf", asked) for verb in ("evaluate", "judge"))
    chain = Chain(Model("rsf", "post"), None, None, evaluated, None, compared)
    metrics = {"reward": 2.5, "reward_stderr": 0.1, "perplexity": 9.0}
    judged = {"win_rate": 0.75, "wins": 3, "ties": 0, "losses": 1}
    for child, found in ((evaluated, metrics), (compared, judged)):
        (tmp_path / child.name).mkdir()
        record = {
            "format": 1,
            "command": "",
            "config": {},
            "status": "finished",
            "metrics": found,
            "fingerprints": {"weights": {"model": weights}},
        }
        write_signed(tmp_path / child.name / "run.json", record)
    write(tmp_path / evaluated.name / "rewards.jsonl", [{"id": 0, "reward": 2.5}])
    by_rate = read_measured(chain, tmp_path, by_reward=False)
    assert (by_rate.x.value, len(by_rate.rewards), by_rate.beside["reward"].value) == (0.75, 0, 2.5)
    assert by_rate.weights == identity_of(weights)
    by_reward = read_measured(chain, tmp_path, by_reward=True)
    assert (by_reward.x.value, len(by_reward.rewards), by_reward.beside) == (2.5, 1, {})


def run_until(command: list[str], there: Path) -> None:
    """Start a command and kill it, with what it started, once ``there`` exists."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True) as run:
        while run.poll() is None and not there.exists():
            time.sleep(0.05)
        assert run.poll() is None, "the run ended before it could be killed"
        os.killpg(run.pid, signal.SIGKILL)


@pytest.mark.slow
def test_killed_and_resumed_it_evaluates_every_model_once(made, tmp_path):
    folder = tmp_path / "run"
    more = [f"models.l2={{model: {made / 'l2'}, method: l2, value: 0.1}}", "published=true", "tensors=released_ma"]
    command = [sys.executable, "-c", CODE, *words_of(made, folder, *more)]
    run_until(command, folder / "evaluate-rsf-ma-0.5" / "run.json")
    before = {name: (folder / name / "run.json").read_bytes() for name in ("evaluate-pre", "average-rsf-ma-0.5")}
    done = run_command(command)
    assert done.returncode == 0, done.stderr
    assert before == {name: (folder / name / "run.json").read_bytes() for name in before}

    points = read_points(folder)
    assert [point.series for point in points] == ["θ_0", "θ (rsf)", *["MA (rsf)"] * 3, "l2 (rsf)"]
    assert [point.alpha for point in points] == [None, None, 0.0, 0.5, 1.0, None]
    assert points[0].reward == points[4].reward
    assert points[1].reward == points[2].reward
    assert {"perplexity", "length"} <= points[0].metrics.keys()
    assert Path(points[0].notes["rewards"]).is_file()
    evaluated = {path.name for path in folder.glob("evaluate-*") if path.is_dir()}
    assert evaluated == {f"evaluate-{name}" for name in ("pre", "pre-again", "rsf", "rsf-ma-0.5", "l2")}
    assert not list(folder.glob("average-*/model")), "averaged models are removed"
    assert list(folder.glob("average-*/ratios.json"))

    result = json.loads((folder / "frontier.json").read_text())
    assert result["noise_floor"]["reward"]["difference"] > 0
    front = result["fronts"]["rsf"]["perplexity"]
    assert (front["lower_is_better"], front["paired"]) == (True, True)
    assert [entry["series"] for entry in front["margins"]] == ["l2 (rsf)"]
    page = (folder / "index.html").read_text()
    assert "data:image/png;base64," in page
    assert "l2 (rsf)" in page
    assert 'src="http' not in page
    record = json.loads((folder / "run.json").read_text())
    assert record["resumptions"] == 1
    assert {child["status"] for child in record["children"].values()} == {"finished"}


@pytest.mark.slow
def test_win_rates_and_benchmarks_of_averages_grafts_and_moving_averages(made, tmp_path):
    cloze = [
        {"id": str(n), "question": text, "choices": {"text": ["dog", "cat"], "label": ["A", "B"]}, "answerKey": "AB"[n]}
        for n, text in enumerate(("who barks", "who purrs"))
    ]
    arc = write(tmp_path / "arc.jsonl", cloze)
    models = {"pre": made / "pre", "checkpoints": f"[{made / 'l2'},{made / 'post'}]"}
    sma = ["average", "method=sma", "decay=0.5", *(f"{key}={value}" for key, value in models.items())]
    assert main([*sma, f"output_dir={tmp_path / 'sma'}"]) == 0
    folder = tmp_path / "run"
    judged = [
        "x=win_rate",
        "evaluate.reward=null",
        f"win_rate.judge={{pairrm: {{model: {save_tiny_pairrm(tmp_path / 'judge')}}}}}",
    ]
    suite = f"benchmarks={{suite: {{tasks: [arc_easy], data: {{arc_easy: {arc}}}}}, cache_dir: {tmp_path / 'cache'}}}"
    others = ["graft=[0.3]", f"models.sma={{model: {tmp_path / 'sma' / 'model'}, method: swa}}"]
    quick = ["ma=false", "noise_floor=false", "evaluate.texts=[]"]
    assert main([*words_of(made, folder, *judged, "evaluate_on=ama", suite, *others), *quick]) == 0

    points = {point.series: point for point in read_points(folder)}
    assert points.keys() == {"θ_0", "θ (rsf)", "Graft (rsf)", "swa (rsf)"}
    assert points["θ_0"].reward.value == 0.5  # against itself
    for point in points.values():
        assert 0 <= point.reward.value <= 1
        assert point.notes["measure"] == "pairrm"
        assert point.metrics["arc_easy"].value in (0, 50, 100)
    result = json.loads((folder / "frontier.json").read_text())
    assert (result["x"], result["fronts"]["rsf"]["arc_easy"]["paired"]) == ("win_rate", False)
    names = {path.name for path in folder.glob("judge-*") if path.is_dir()}
    assert names == {f"judge-{name}" for name in ("rsf", "rsf-graft-0.3", "sma")}
    record = json.loads((folder / "run.json").read_text())
    assert {child["status"] for child in record["children"].values()} == {"finished"}
