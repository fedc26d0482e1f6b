"""``ama adapt``: from two models and D_θ to ``ratios.json``, interrupted or not, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from reproalign.ama.adapt import exact, published
from reproalign.ama.adapt.likelihood import LikelihoodObjective
from reproalign.ama.cli import main
from reproalign.ama.ratios_file import read_ratios
from reproalign.common.models.tiny import tiny_model
from reproalign.common.models.tiny_tokenizers import tiny_tokenizer
from reproalign.common.records.folder import read_record
from reproalign.common.testing import refusal
from reproalign.common.testing.checkpoints import save_random_adapter

WORDS = ["layout=lmflow", "block_size=16", "max_length=48"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    pre = tiny_model("llama", seed=0, num_hidden_layers=4)
    post = tiny_model("llama", seed=0, num_hidden_layers=4)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in post.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    other = tiny_model("llama", seed=2, num_hidden_layers=3)
    for name, model in (("pre", pre), ("post", post), ("other", other)):
        model.save_pretrained(root / name)
        tiny_tokenizer().save_pretrained(root / name)
    rows = [
        {"id": n, "messages": [{"role": "user", "content": f"what is {n}?"}, {"role": "assistant", "content": text}]}
        for n, text in enumerate(
            ("the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "again", "and", "on")
        )
    ]
    (root / "d_theta.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    labelled = [{"prompt": f"two plus {n} is ", "response": "a number"} for n in range(8)]
    (root / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled))
    (root / "empty.jsonl").write_text("")
    return root


def words(models: Path, out: Path, *more: str) -> list[str]:
    given = {word.partition("=")[0] for word in more}
    paths = {"pre": models / "pre", "post": models / "post", "rows": models / "d_theta.jsonl", "output_dir": out}
    return ["adapt", *(f"{key}={path}" for key, path in paths.items() if key not in given), *WORDS, *more]


@pytest.fixture
def run(models: Path, tmp_path: Path) -> Callable[..., tuple[Any, dict[str, Any]]]:
    def go(name: str, *more: str) -> tuple[Any, dict[str, Any]]:
        assert main(words(models, tmp_path / name, *more)) == 0
        return read_ratios(str(tmp_path / name)), read_record(tmp_path / name)

    return go


def test_the_exact_solution_is_better_on_the_constraint_set(run: Any, tmp_path: Path) -> None:
    """Eq. 9: within Ω the loss is lowest at the solution, where its slope along Ω is 0."""
    ratios, record = run("exact", "parts=even2", "solver=exact", "alpha=0.4", "eval_fraction=0.25", "epsilon=0")
    assert sum(ratios.groups.values()) / 2 == pytest.approx(0.4, abs=1e-12)
    assert all(0 <= ratio <= 1 for ratio in ratios.groups.values())
    rows = [json.loads(line) for line in (tmp_path / "exact/metrics.jsonl").read_text().splitlines()]
    for row in rows:
        assert row["ratio/0"] + row["ratio/1"] == pytest.approx(0.8, abs=2e-12)
    assert min(row["loss"] for row in rows) == record["solution"]["objective"] < rows[0]["loss"]
    # Along the line a_0 + a_1 = 0.8 nothing near by is better: the slope vanishes, or points out of the box.
    evaluations = map(json.loads, (tmp_path / "exact/evaluations.jsonl").read_text().splitlines())
    found = [ratios.groups["0"], ratios.groups["1"]]
    one, other = next(entry["evaluation"]["gradient"] for entry in evaluations if entry["ratios"] == found)
    rise = {0.0: min(one - other, 0), 0.8: max(one - other, 0)}.get(round(found[0], 9), one - other)
    assert abs(rise) < 1e-3
    assert record["metrics"]["held_out_loss"] != record["metrics"]["held_out_loss_at_equal_ratios"]
    assert ratios.found["solver"] == "exact"
    assert (ratios.tensors, ratios.head, ratios.level) == ("linear_head_post", "base", "even2")
    assert (tmp_path / "exact/plots/ratios.png").is_file()


def test_the_published_solver_keeps_the_mean_and_says_how_far_it_went(run: Any, tmp_path: Path) -> None:
    ratios, record = run("published", "parts=block2", "published.learning_rate=0.05")
    rows = [json.loads(line) for line in (tmp_path / "published/metrics.jsonl").read_text().splitlines()]
    assert len(rows) == record["metrics"]["steps"] > 3
    for row in rows:
        assert row["ratio/0"] + row["ratio/1"] == pytest.approx(0.4, abs=2e-12)
    assert ratios.groups["0"] != ratios.groups["1"]
    assert record["solution"]["sum_of_learning_rates"] > 0


def test_the_layer_weighted_mean_may_be_the_constraint(run: Any) -> None:
    ratios, record = run("layers", "parts=0", "constraint=layer_mean", "solver=exact", "alpha=0.3")
    one, other = ratios.groups.values()
    assert (one + 3 * other) / 4 == pytest.approx(0.3, abs=1e-12)
    assert record["metrics"]["layer_weighted_mean"] == pytest.approx(0.3, abs=1e-12)
    assert record["metrics"]["mean"] != pytest.approx(0.3, abs=1e-6)


def test_epsilon_is_chosen_on_what_is_held_out(run: Any, tmp_path: Path) -> None:
    ratios, record = run("epsilons", "parts=even2", "solver=exact", "epsilon=[0,0.5,3]", "eval_fraction=0.3")
    compared = {name: entry["held_out_loss"] for name, entry in record["epsilons"].items() if name != "by"}
    assert compared.keys() == {"0", "0.5", "3"}
    assert f"{ratios.epsilon:g}" == min(compared, key=compared.get)
    assert record["metrics"]["held_out_loss"] == min(compared.values())


def test_labelled_answers_are_learned_from(run: Any, models: Path) -> None:
    rows = f"rows={models / 'labelled.jsonl'}"
    ratios, _ = run("labelled", "objective=labelled", "layout=plain", rows, "parts=layerwise", "solver=exact")
    assert len(ratios.groups) == 4
    assert sum(ratios.groups.values()) / 4 == pytest.approx(0.2, abs=1e-12)


@pytest.mark.parametrize("key", ["pre", pytest.param("post", marks=pytest.mark.slow)])
def test_an_adapter_is_folded_in_on_the_way(run: Any, models: Path, tmp_path: Path, key: str) -> None:
    adapter = save_random_adapter(tmp_path / "adapter", models / key, 1)
    model = AutoModelForCausalLM.from_pretrained(models / key)
    PeftModel.from_pretrained(model, str(adapter)).merge_and_unload().save_pretrained(tmp_path / "folded")
    tiny_tokenizer().save_pretrained(tmp_path / "folded")
    folded, _ = run("whole", "parts=even2", f"{key}={tmp_path / 'folded'}", "published.learning_rate=0.05")
    for name, given in (("alone", f"{adapter}"), ("composed", f"{models / key}+{adapter}")):
        found, record = run(name, "parts=even2", f"{key}={given}", "published.learning_rate=0.05")
        assert found.groups == pytest.approx(folded.groups, abs=1e-6)
        assert record["fingerprints"]["weights"][key]["sha256"] == getattr(found, key)["sha256"]
        average = ["average", f"ratios={tmp_path / name}", f"pre={models / 'pre'}", f"post={models / 'post'}"]
        average = [word for word in average if not word.startswith(f"{key}=")] + [f"{key}={given}"]
        assert main([*average, f"output_dir={tmp_path / name / 'average'}"]) == 0
        assert not [note for note in read_record(tmp_path / name / "average")["notes"] if "found for" in note]


def test_the_released_variant_moves_every_ratio_alike_and_saves_others(run: Any, tmp_path: Path) -> None:
    released = ["variant=released", "parts=block2", "published.learning_rate=0.001", "published.save_steps=1"]
    ratios, record = run("released", *released)
    assert (ratios.variant, ratios.tensors, ratios.head) == ("released", "linear_head_pre", "base")
    assert ratios.groups["0"] != ratios.groups["1"]
    assert record["metrics"]["mean"] == pytest.approx(0.2, abs=1e-6)
    state = json.loads((tmp_path / "released/state.json").read_text())
    assert state["optimizer"]["moments"][0]["step"] == 14 * record["metrics"]["steps"]  # seven linear layers in each


@pytest.mark.parametrize(
    ("options", "at"),
    [
        (["parts=layerwise", "solver=exact", "epsilon=0"], 3),
        (["parts=even2", "published.save_steps=2"], 4),
        pytest.param(["parts=block2", "variant=released", "published.save_steps=2"], 4, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_ends_at_the_same_bits(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], at: int
) -> None:
    assert main(words(models, tmp_path / "whole", *options)) == 0
    evaluate, calls = LikelihoodObjective.evaluate, 0

    def stop_in_the_middle(self: LikelihoodObjective, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == at:
            raise KeyboardInterrupt
        return evaluate(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(LikelihoodObjective, "evaluate", stop_in_the_middle)
        assert main(words(models, tmp_path / "cut", *options)) == 130
    assert read_record(tmp_path / "cut")["status"] == "interrupted"
    assert any((tmp_path / "cut" / name).is_file() for name in (exact.EVALUATIONS, published.STATE))
    assert main(words(models, tmp_path / "cut", *options)) == 0
    whole, cut = (json.loads((tmp_path / name / "ratios.json").read_text()) for name in ("whole", "cut"))
    assert whole == cut
    assert read_record(tmp_path / "cut")["resumptions"] == 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["alpha=0"], "alpha=0.0 must be above 0 and below 1"),
        (["alpha=1.5"], "alpha=1.5 must be above 0 and below 1"),
        (["parts=bloc3"], "unknown parts 'bloc3'"),
        (["parts=block9"], "block9"),
        (["epsilon=-0.1"], "epsilon=-0.1"),
        (["epsilon=[0,0.1]"], "eval_fraction"),
        (["post=OTHER"], "num_hidden_layers"),
        (["rows=EMPTY"], "the file has no rows"),
        (["rows=/nowhere"], "rows=/nowhere: no such file"),
        (["rows=LABELLED"], "give a run of `ama collect`, or set objective=labelled"),
        (["pre=/nowhere"], "pre=/nowhere: no such folder"),
        (["post=/nowhere"], "post=/nowhere: no such folder"),
        (["post=PRE+/nowhere"], "post=/nowhere: no such folder"),
        (["variant=released", "parts=linewise"], "unknown parts"),
        (["variant=released", "parts=linearwise"], "NaN"),
        (["bounds=unit", "alpha=0.9", "parts=even2"], "bounds=unit"),
        (["regularizer=0"], "sum_reg_type=0"),
        (["reg_alpha=0.1"], "regularizer is not set"),
        (["objective=reward"], "rows has no meaning"),
        (["model.name=x"], "model.name has no meaning"),
        (["eval_fraction=1"], "eval_fraction=1.0"),
        (["tensors=all"], "tensors"),
        (["block_size=4096"], "fill no block"),
    ],
)
def test_mistakes_are_one_sentence_and_nothing_is_written(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    places = {
        "post=OTHER": f"post={models / 'other'}",
        "post=PRE+/nowhere": f"post={models / 'pre'}+/nowhere",
        "rows=EMPTY": f"rows={models / 'empty.jsonl'}",
        "rows=LABELLED": f"rows={models / 'labelled.jsonl'}",
    }
    given = words(models, tmp_path / "out", *(places.get(word, word) for word in more))
    given = [word for word in given if word != "block_size=16" or "block_size=4096" not in more]
    assert said in refusal("ama", main, given, capsys, untouched=tmp_path)


def test_a_dry_run_shows_what_can_be_reached(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words(models, tmp_path / "dry", "parts=even2"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "reachable" in printed
    assert "12 rows" in printed
    assert not (tmp_path / "dry").exists()
