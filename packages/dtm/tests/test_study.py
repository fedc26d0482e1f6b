"""The pilot study's measures on examples worked out by hand, their properties, and their commands end to end."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from reproalign.common.invocation import Invocation, structured
from reproalign.common.models.tiny import tiny_folder
from reproalign.common.testing import composed, refusal
from reproalign.dtm.cli import APP, STUDY, main
from reproalign.dtm.study.course import course
from reproalign.dtm.study.curves_plan import make_plan
from reproalign.dtm.study.errors import compare_errors
from reproalign.dtm.study.gap import loss_gap
from reproalign.dtm.study.learned import learned_tokens
from reproalign.dtm.study.scores import BenchmarkScore

PNG = b"\x89PNG"


def evaluation(
    folder: Path,
    loss: float,
    *,
    rows: str = "rows",
    weights: str = "w",
    correct: list[int] | None = None,
    nll: list[float] | None = None,
    tokens: list[tuple[int, float]] | None = None,
) -> str:
    """Write what ``dtm evaluate`` leaves: four rows of ten tokens, unless ``tokens`` (id, loss) are given."""
    folder.mkdir(parents=True)
    results = {
        "model": {"name": str(tiny_folder("llama")), "revision": None},
        "weights": weights,
        "rows": {"sha256": rows, "tokens_sha256": f"{rows}-tokens"},
        "interval": {"confidence": 0.95, "resamples": 100, "seed": 42},
        "measures": [{"name": "all", "loss": loss, "low": loss - 0.196, "high": loss + 0.196}],
    }
    (folder / "results.json").write_text(json.dumps(results))
    lines = [
        {"index": index, "source": None, "tokens": 10, "nll": (nll or [10 * loss] * 4)[index], "correct": hits}
        for index, hits in enumerate(correct or [5] * 4)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if tokens:
        ids, losses = np.array([token for token, _ in tokens], dtype=np.int32), np.array([loss for _, loss in tokens])
        arrays = {"ids": ids, "losses": losses.astype(np.float32), "offsets": np.array([0, len(ids)])}
        save_file(arrays, folder / "tokens.safetensors")
    return str(folder)


# ρ = ΔL_train / ΔL_val


def test_the_loss_gap_by_hand():
    """R8, between evaluations and since the first."""
    training, held_out = [3.0, 2.0, 1.0], [3.0, 2.5, 2.4]
    assert loss_gap(training, held_out) == pytest.approx([2.0, 10.0])
    assert loss_gap(training, held_out, "cumulative") == pytest.approx([2.0, 2.0 / 0.6])


def test_a_held_out_loss_that_stands_still_has_no_ratio():
    first, second = loss_gap([3.0, 2.0, 1.0], [3.0, 3.0 + 1e-13, 2.0])
    assert math.isnan(first)
    assert second == pytest.approx(1.0)


@given(st.lists(st.floats(0.1, 5), min_size=2, max_size=9), st.floats(0.1, 10), st.floats(-3, 3))
def test_the_loss_gap_of_proportional_curves_is_their_factor_and_shifts_change_nothing(held_out, factor, shift):
    training = [factor * loss + shift for loss in held_out]
    for mode in ("incremental", "cumulative"):
        for ratio, k in zip(loss_gap(training, held_out, mode), range(1, len(held_out)), strict=True):
            change = held_out[k - 1 if mode == "incremental" else 0] - held_out[k]
            assert math.isnan(ratio) if abs(change) < 1e-12 else abs(change) < 1e-3 or ratio == pytest.approx(factor)


def test_the_first_ratio_is_the_same_in_both_modes():
    assert loss_gap([3.0, 2.0], [3.0, 2.8]) == loss_gap([3.0, 2.0], [3.0, 2.8], "cumulative")
    with pytest.raises(ValueError, match="1 training losses and 2"):
        loss_gap([1.0], [1.0, 2.0])


def test_study_gap_writes_what_it_shows(tmp_path):
    training = [evaluation(tmp_path / f"t{k}", loss, weights=f"w{k}") for k, loss in enumerate([3.0, 2.0, 1.0])]
    held_out = [
        evaluation(tmp_path / f"h{k}", loss, weights=f"w{k}", rows="h") for k, loss in enumerate([3.0, 2.5, 2.5])
    ]
    words = [f"training=[{','.join(training)}]", f"held_out=[{','.join(held_out)}]", "fractions=[0.5,1.0]"]
    assert main(["study", "gap", *words, f"output_dir={tmp_path / 'gap'}"]) == 0
    found = json.loads((tmp_path / "gap" / "gap.json").read_text())
    assert (found["fractions"], found["rho"]) == ([0.0, 0.5, 1.0], [2.0, "nan"])
    assert (tmp_path / "gap" / "gap.csv").read_text().splitlines()[-1] == "1.0,1.0,2.5,nan"
    assert (tmp_path / "gap" / "plots" / "gap.png").read_bytes().startswith(PNG)


# δ_v


def test_learned_tokens_by_hand():
    """R9, highest first."""
    ids, before, after = [7, 7, 8, 9, 9], [2.0, 4.0, 5.0, 1.0, 1.0], [1.0, 1.0, 0.0, 2.0, 2.0]
    found = learned_tokens(ids, before, after, min_count=1)
    assert [(entry.id, entry.delta, entry.count) for entry in found] == [(8, 5.0, 1), (7, 2.0, 2), (9, -1.0, 2)]
    assert [entry.id for entry in learned_tokens(ids, before, after, min_count=2)] == [7, 9]
    assert [entry.id for entry in learned_tokens(ids, before, after, min_count=1, top=1)] == [8]
    assert learned_tokens([], [], []) == []


@given(
    st.lists(st.tuples(st.integers(0, 5), st.floats(0, 9), st.floats(0, 9)), min_size=1, max_size=40),
    st.randoms(use_true_random=False),
)
def test_learned_tokens_add_up_to_the_loss_that_was_lost_and_the_order_of_positions_does_not_matter(rows, draw):
    ids, before, after = (list(values) for values in zip(*rows, strict=True))
    found = learned_tokens(ids, before, after, min_count=1)
    assert sum(entry.delta * entry.count for entry in found) == pytest.approx(sum(before) - sum(after), abs=1e-6)
    assert [entry.delta for entry in found] == sorted((entry.delta for entry in found), reverse=True)
    draw.shuffle(rows)
    again = learned_tokens(*(list(values) for values in zip(*rows, strict=True)), min_count=1)
    assert {entry.id: entry.count for entry in again} == {entry.id: entry.count for entry in found}
    assert {entry.id: entry.delta for entry in again} == pytest.approx({entry.id: entry.delta for entry in found})


def test_study_tokens_lists_both_stages(tmp_path):
    stages = {"a": [(65, 4.0), (66, 4.0)], "b": [(65, 1.0), (66, 4.0)], "c": [(65, 1.0), (66, 2.0)]}
    paths = {name: evaluation(tmp_path / name, 1.0, tokens=3 * tokens) for name, tokens in stages.items()}
    words = [f"early=[{paths['a']},{paths['b']}]", f"late=[{paths['b']},{paths['c']}]", "min_count=3", "top=1"]
    assert main(["study", "tokens", *words, f"output_dir={tmp_path / 'out'}"]) == 0
    found = json.loads((tmp_path / "out" / "tokens.json").read_text())["stages"]
    assert [(entry["id"], entry["delta"], entry["count"]) for entry in found["early"]] == [(65, 3.0, 3)]
    assert [(entry["id"], entry["delta"], entry["count"]) for entry in found["late"]] == [(66, 2.0, 3)]
    rows = list(csv.DictReader((tmp_path / "out" / "tokens.csv").open()))
    assert [(row["stage"], row["rank"], row["id"]) for row in rows] == [("early", "1", "65"), ("late", "1", "66")]
    assert (tmp_path / "out" / "plots" / "tokens.png").read_bytes().startswith(PNG)


# error sets


def test_error_sets_by_hand():
    """R10: errors of one sub-model alone, and of all."""
    found = compare_errors({"a": {"1", "2", "3"}, "b": {"1", "3", "4"}, "c": {"1", "5"}}, {"1", "2", "6"})
    assert (found.sizes, found.merged) == ({"a": 3, "b": 3, "c": 2}, 3)
    assert (found.shared, found.union, found.shared_kept, found.new) == (1, 5, 1, 1)
    assert found.unique == {"a": 1, "b": 1, "c": 1}  # 2, 4, 5
    assert found.corrected == {"a": 0, "b": 1, "c": 1}
    assert found.jaccard == {("a", "b"): 0.5, ("a", "c"): 0.25, ("b", "c"): 0.25}
    assert (found.share_corrected, found.share_kept) == (pytest.approx(2 / 3), 1.0)


SETS = st.dictionaries(st.sampled_from("abcd"), st.sets(st.sampled_from("12345678")), min_size=2)


@given(SETS, st.sets(st.sampled_from("12345678")))
def test_error_sets_keep_their_bounds(errors, merged):
    found = compare_errors(errors, merged)
    assert found.shared <= min(found.sizes.values()) <= max(found.sizes.values()) <= found.union
    assert sum(found.unique.values()) <= found.union
    assert all(found.corrected[name] <= found.unique[name] for name in errors)
    assert found.shared_kept <= found.shared
    assert all(0 <= value <= 1 for value in found.jaccard.values())
    perfect, same = compare_errors(errors, set()), compare_errors(errors, set().union(*errors.values()))
    assert (perfect.corrected, perfect.shared_kept) == (perfect.unique, 0)
    assert (sum(same.corrected.values()), same.shared_kept, same.new) == (0, same.shared, 0)


@pytest.mark.parametrize(
    ("words", "sizes", "unique"),
    [(["rule=accuracy", "threshold=0.5"], {"a": 2, "b": 1}, {"a": 1, "b": 0}), (["rule=loss"], None, None)],
)
def test_study_errors_on_rows(tmp_path, words, sizes, unique):
    base = evaluation(tmp_path / "base", 2.0)
    a = evaluation(tmp_path / "a", 1.0, correct=[4, 4, 5, 9], nll=[30.0, 10.0, 10.0, 10.0])
    b = evaluation(tmp_path / "b", 1.0, correct=[4, 6, 5, 9], nll=[10.0, 30.0, 10.0, 10.0])
    merged = evaluation(tmp_path / "m", 1.0, correct=[4, 6, 5, 9], nll=[10.0] * 4)
    words = [*words, *([f"base={base}"] if "rule=loss" in words else [])]
    out = tmp_path / "out"
    assert main(["study", "errors", f"models=[{a},{b}]", f"merged={merged}", *words, f"output_dir={out}"]) == 0
    found = json.loads((out / "errors.json").read_text())
    if sizes:
        assert (found["sizes"], found["unique"], found["corrected"]) == (sizes, unique, {"a": 1, "b": 0})
        assert (found["shared"], found["shared_kept"], found["jaccard"]) == (1, 1, {"a | b": 0.5})
    else:
        assert found["sets"] == {"a": ["0"], "b": ["1"]}
        assert found["share_of_unique_corrected"] == 1.0
    assert (out / "plots" / "errors.png").read_bytes().startswith(PNG)
    assert (out / "errors.csv").read_text().startswith("model,errors,unique,corrected\n")


def samples(folder: Path, scores: list[float], task: str = "arc_easy", metric: str = "acc") -> str:
    (folder / "samples").mkdir(parents=True)
    rows = [{"question": k, "prompt": f"p{k}", "scores": {metric: score, "x": 1}} for k, score in enumerate(scores)]
    (folder / "samples" / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def test_study_errors_on_questions_of_a_suite(tmp_path):
    a, b = samples(tmp_path / "a", [0, 0, 1]), samples(tmp_path / "b", [0, 1, 1])
    merged = samples(tmp_path / "m", [0, 1, 0])
    words = ["study", "errors", f"models=[{a},{b}]", f"merged={merged}", f"output_dir={tmp_path / 'out'}"]
    assert main(words) == 0
    found = json.loads((tmp_path / "out" / "errors.json").read_text())
    assert (found["items"], found["sizes"], found["shared"], found["new"]) == (3, {"a": 2, "b": 1}, 1, 1)
    assert found["corrected"] == {"a": 1, "b": 0}


# curves


def test_a_course_has_its_peak_and_its_end_against_peak_and_base():
    found = course(
        {1.0: BenchmarkScore(49.74), 0.0: BenchmarkScore(45.96), 0.8: BenchmarkScore(50.70), 0.2: BenchmarkScore(48.31)}
    )
    assert (found.fractions, found.base, found.peak, found.peak_at) == ([0.0, 0.2, 0.8, 1.0], 45.96, 50.70, 0.8)
    assert (found.final_minus_peak, found.final_minus_base) == (pytest.approx(-0.96), pytest.approx(3.78))
    loss = course({0.5: BenchmarkScore(1.8), 1.0: BenchmarkScore(1.9)}, lower_is_better=True)
    assert (loss.peak_at, loss.final_minus_peak, loss.final_minus_base) == (0.5, pytest.approx(0.1), None)


def suite_run(folder: Path, **values: float) -> str:
    folder.mkdir(parents=True)
    rows = [{"name": name, "value": value, "stderr": 0.4} for name, value in values.items()]
    (folder / "results.json").write_text(json.dumps({"suite": "dtm", "rows": rows}))
    return str(folder)


@pytest.mark.parametrize(
    ("word", "key", "value"), [("model.lora.enabled=false", "enabled", False), ("model.lora.alpha=32", "alpha", 32)]
)
def test_study_curves_trains_the_adapters_it_is_told(tmp_path, word, key, value):
    words = ["model=tiny", f"output_dir={tmp_path}", "train.rows=[r.jsonl]", "evaluate.rows=[h.jsonl]"]
    config = composed(APP, *words, word, verb="study curves")
    invocation = Invocation(
        ["dtm", "study", "curves"], APP.package, "study curves", STUDY[0].schema, STUDY[0].target, config
    )
    training = (
        make_plan(structured(invocation.schema, invocation.config), invocation)
        .children[1]
        .invocation.config["model"]["lora"]
    )
    assert training == config["model"]["lora"]
    assert (training["r"], training[key]) == (16, value)


@pytest.mark.usefixtures("pictures")
def test_study_curves_of_given_evaluations_and_the_claim_about_them(tmp_path):
    runs = [evaluation(tmp_path / f"l{k}", loss) for k, loss in enumerate([2.0, 1.5, 1.6])]
    runs += [suite_run(tmp_path / f"s{k}", mmlu=value, bbh_mean=40.0 + k) for k, value in enumerate([45.0, 50.0, 49.0])]
    words = [f"runs=[{','.join(runs)}]", "at=[0,0.5,1,0,0.5,1]", f"output_dir={tmp_path / 'curves'}"]
    assert main(["study", "curves", *words]) == 0
    found = json.loads((tmp_path / "curves" / "curves.json").read_text())["curves"]
    assert found["loss"]["final_minus_peak"] == pytest.approx(0.1)
    assert found["loss"]["stderr"] == pytest.approx([0.1] * 3, rel=1e-3)
    assert (found["MMLU"]["peak_at"], found["MMLU"]["final_minus_peak"]) == (0.5, -1.0)
    assert found["BBH"]["final_minus_base"] == 2.0
    assert (tmp_path / "curves" / "plots" / "curves.png").read_bytes().startswith(PNG)
    words = [f"curves={tmp_path / 'curves'}", f"output_dir={tmp_path / 'claims'}"]
    assert main(["study", "claims", *words]) == 0
    claims = {entry["id"]: entry for entry in json.loads((tmp_path / "claims" / "claims.json").read_text())["claims"]}
    assert (claims["late-sft-hurts"]["ours"]["met"], claims["late-sft-hurts"]["ours"]["of"]) == (1, 2)


# claims, as a command


def test_study_claims_without_results_checks_the_paper(tmp_path, capsys):
    assert main(["study", "claims", f"output_dir={tmp_path / 'out'}"]) == 0
    found = json.loads((tmp_path / "out" / "claims.json").read_text())
    assert all(entry["ours"] is None for entry in found["claims"])
    assert len(found["means"]) == 19
    lines = (tmp_path / "out" / "claims.md").read_text().splitlines()
    assert "| dtm-beats-vanilla | DTM beats vanilla | +2.12 +0.69" in lines[2]
    assert "supported, 9 of 9; 0 of 9 clear" in lines[2]
    assert (tmp_path / "out" / "plots" / "claims.png").read_bytes().startswith(PNG)
    assert "32.91" in capsys.readouterr().out


def test_study_claims_reads_tables_and_runs_alike(tmp_path):
    (tmp_path / "table.csv").write_text("method,MMLU,mmlu_stderr,BBH\nvanilla,50,0.3,40\n")
    dtm = suite_run(tmp_path / "dtm", mmlu=51.0, bbh_mean=39.0, something=1.0)
    words = [f"results={tmp_path / 'table.csv'}", f"runs={{dtm: {dtm}}}", f"output_dir={tmp_path / 'out'}"]
    assert main(["study", "claims", *words, "claims=[gain-vanishes-on-small-data]"]) == 0
    (entry,) = json.loads((tmp_path / "out" / "claims.json").read_text())["claims"]
    effects = entry["ours"]["effects"]
    assert [(effect["difference"], effect["met"]) for effect in effects] == [(1.0, False), (-1.0, True)]
    assert effects[0]["standard_errors"] == pytest.approx(2.0)
    nested = {"llama-2-7b": {"vanilla": {"MMLU": {"value": 50, "stderr": 0.3}}, "dtm": {"MMLU": 51}}}
    (tmp_path / "table.json").write_text(json.dumps(nested))
    words = [f"results={tmp_path / 'table.json'}", f"output_dir={tmp_path / 'second'}"]
    assert main(["study", "claims", *words]) == 0


@pytest.fixture
def fails(tmp_path, capsys, monkeypatch):
    """Run a command line that must be refused, in a folder with evaluations and tables; return its line of error."""
    monkeypatch.chdir(tmp_path)
    given = tmp_path / "in"
    for name, loss in (("a", 2.0), ("b", 1.0), ("c", 0.5)):
        evaluation(given / name, loss, weights=name, tokens=[(65, loss)])
    evaluation(given / "other", 1.0, rows="other", weights="b")
    suite_run(given / "suite", mmlu=50.0)
    suite_run(given / "nothing", piqa=1.0)
    samples(given / "samples", [0, 1])
    samples(given / "fewer", [0])
    tables = {
        "lacks.csv": "method,MMLU\nvanilla,50\ndtm,51\n",
        "typo.csv": "method,MMUL\ndtm,51\n",
        "text.csv": "method,MMLU\ndtm,high\n",
        "twice.csv": "method,MMLU\ndtm,1\ndtm,2\n",
        "unnamed.csv": "model,MMLU\ndtm,1\n",
        "empty.csv": "method,MMLU\n",
        "alien.csv": "method,MMLU\nmine,1\n",
        "bad.json": "{",
    }
    for name, text in tables.items():
        (given / name).write_text(text)
    (given / "rows.jsonl").write_text(json.dumps({"instruction": "a", "output": ""}) + "\n")

    def run(*words: str) -> str:
        return refusal("dtm", main, [*words, "output_dir=out"], capsys, untouched=tmp_path)

    return run


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "gap training=[in/a,in/b] held_out=[in/a] fractions=[1.0]",
            "held_out names 1 evaluations; 1 fractions need 2",
        ),
        (
            "gap training=[in/a,in/b] held_out=[in/a,in/b] fractions=[1.5]",
            "fractions[0]=1.5 must be above 0 and at most 1",
        ),
        ("gap training=[in/a,in/b] held_out=[in/a,in/b] fractions=[0]", "fractions[0]=0.0 must be above 0"),
        ("gap training=[in/a] held_out=[in/a] fractions=[]", "fractions=[] is empty"),
        ("gap training=[in/a,in/b,in/c] held_out=[in/a,in/b,in/c] fractions=[1,0.5]", "0.5 stands after 1"),
        ("gap training=[in/a,in/other] held_out=[in/a,in/b] fractions=[1]", "measured different rows (by SHA-256)"),
        ("gap training=[in/a,in/b] held_out=[in/b,in/a] fractions=[1]", "are of different models (by SHA-256)"),
        ("gap training=[in/a,in/none] held_out=[in/a,in/b] fractions=[1]", "in/none: no results.json there"),
        ("gap training=[in/a,in/suite] held_out=[in/a,in/b] fractions=[1]", "is not of `dtm evaluate rows=…`"),
        ("gap training=[in/a,in/b] held_out=[in/a,in/b] fractions=[1] mode=total", "unknown mode 'total'"),
        ("tokens early=[in/a] late=[in/a,in/b]", "early names 1 evaluations; give two"),
        ("tokens early=[in/a,in/b] late=[in/b,in/c] top=0", "top=0 must be at least 1"),
        ("tokens early=[in/a,in/b] late=[in/b,in/c]", "min_count=20: no token is the target so often"),
        ("tokens early=[in/a,in/other] late=[in/b,in/c]", "measured different rows"),
        ("errors models=[in/a] merged=in/b", "models needs the evaluations of two or more"),
        ("errors models=[in/a,in/a] merged=in/b rule=accuracy", "names one folder twice"),
        ("errors models=[in/a,in/b] merged=in/c", "rule is not set; say when a row is an error"),
        ("errors models=[in/a,in/b] merged=in/c rule=loss", "set base to the folder"),
        ("errors models=[in/a,in/b] merged=in/c rule=accuracy threshold=0", "threshold=0.0 must be above 0"),
        ("errors models=[in/a,in/b] merged=in/c rule=accuracy base=in/a", "base is for rule=loss alone"),
        ("errors models=[in/a,in/b] merged=in/c rule=accuracy tasks=[x]", "tasks is for a suite's samples"),
        ("errors models=[in/a,in/samples] merged=in/c", "in/a has no samples/ as the others have"),
        ("errors models=[in/samples,in/fewer] merged=in/samples", "have different questions (e.g. arc_easy:1:"),
        (
            "errors models=[in/samples,in/fewer] merged=in/samples rule=loss",
            "rule and base are for evaluations of rows",
        ),
        ("errors models=[in/samples,in/fewer] merged=in/samples tasks=[x]", "unknown task in in/samples/samples 'x'"),
        ("errors models=[in/samples,in/fewer] merged=in/samples metric=f1", "no question has a metric f1"),
        ("curves", "model.name is not set; give the base model, or runs=[…]"),
        ("curves runs=[]", "runs=[] names no evaluation"),
        ("curves runs=[in/a,in/b] at=[0]", "at names 1 fractions for 2 runs"),
        ("curves runs=[in/a,in/b] at=[0,1.2]", "at[1]=1.2 must be from 0 to 1"),
        ("curves runs=[in/a,in/b] at=[1,1]", "in/b is a second value of loss at the fraction 1"),
        ("curves runs=[in/a,in/other] at=[0,1]", "measured different rows"),
        ("curves runs=[in/a] at=[0]", "loss is known of the base model alone"),
        ("curves runs=[in/a] at=[1] evaluate_on=dtm", "evaluate_on is for trainings that this command starts"),
        ("curves runs=[in/a] at=[1] model.name=tiny:llama", "model.name is for trainings"),
        ("curves runs=[in/nothing] at=[1]", "its suite has none of the paper's benchmarks"),
        ("curves model.name=tiny:llama", "train names no rows"),
        ("curves model.name=tiny:llama train.rows=[in/rows.jsonl]", "evaluate.rows is not set"),
        ("curves model.name=tiny:llama fractions=[0.5,0.5]", "0.5 stands after 0.5"),
        ("claims tolerance=-1", "tolerance=-1.0 must be at least 0"),
        ("claims claims=[dtm-wins]", "unknown claim 'dtm-wins'"),
        ("claims results=in/lacks.csv claims=[dtm-beats-vanilla]", "do not suffice: dtm or vanilla lacks GSM8K, BBH"),
        ("claims results=in/typo.csv", "dtm: unknown benchmark 'MMUL' (did you mean 'MMLU'?)"),
        ("claims results=in/text.csv", "MMLU is 'high'; a number is needed"),
        ("claims results=in/twice.csv", "dtm is there twice"),
        ("claims results=in/unnamed.csv", "row 1: 'method' is missing"),
        ("claims results=in/empty.csv", "has no rows"),
        ("claims results=in/alien.csv", "these results suffice for no claim"),
        ("claims results=in/bad.json", "not valid JSON"),
        ("claims results=in/none.csv", "cannot be read; give a CSV or JSON file"),
        ("claims results=in/rows.jsonl", "give a file that ends in .csv or .json"),
        ("claims runs.dtm=in/a", "no results of `dtm evaluate suite=dtm` there"),
        ("claims curves=in/a", "no curves.json of `dtm study curves` there"),
        ("clams", "unknown study 'clams' (did you mean 'claims'?)"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(fails, line, message):
    assert message in fails("study", *line.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rows=[in/none.jsonl]"], "in/none.jsonl"),
        (["rows=[]"], "rows=[] names no file"),
        (["rows=[in/rows.jsonl]", "sample=2"], "sample=2 is more than the 1 rows"),
        (["rows=[in/rows.jsonl]", "tokens.append_eos=false"], "no row has a response within tokens.max_length"),
        (["rows=[in/rows.jsonl]", "confidence=1"], "confidence=1.0 must be above 0 and below 1"),
        (["rows=[in/rows.jsonl]", "resamples=3"], "resamples=3 must be at least 100"),
        (["rows=[in/rows.jsonl]", "batch_size=0"], "batch_size=0 must be at least 1"),
        (["rows=[in/rows.jsonl]", "variant=both"], "unknown variant 'both'"),
        (["rows=[in/rows.jsonl]", "tokens.drop_unsupervised=true"], "tokens.drop_unsupervised is for training"),
        (["rows=[in/rows.jsonl]", "model.lora.enabled=true"], "model.lora.enabled is gone: nothing is trained here"),
        (["rows=[in/rows.jsonl]", "model.chat_template=chatml"], "the rows are put in the Alpaca prompt"),
        (["rows=[in/rows.jsonl]", "logprobs.implementation=full"], "unknown logprobs.implementation 'full'"),
        (["rows=[in/rows.jsonl]", "model.name=./in/a"], "not a model folder"),
        (["rows=[in/rows.jsonl]", "launch.strategy=zero2"], "launch.strategy=zero2"),
    ],
)
def test_an_evaluation_that_cannot_be_is_refused(fails, words, message):
    model = [] if any(word.startswith("model.name") for word in words) else ["model.name=tiny:llama"]
    assert message in fails("evaluate", *model, *words)


def test_a_study_without_a_kind_names_them(fails, capsys):
    assert "needs a second word; choose one of: curves, gap, tokens, errors, claims" in fails("study")
    assert main(["study", "--help"]) == 0
    assert "study claims" in capsys.readouterr().out
    assert main(["study", "claims", "--help"]) == 0
    assert "dtm study claims" in capsys.readouterr().out
