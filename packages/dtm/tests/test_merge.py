"""``dtm merge``: which models are merged, in which space, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from reproalign.common.errors import UserError
from reproalign.common.testing import refusal
from reproalign.common.testing.checkpoints import save_random, save_random_adapter, tensors_of
from reproalign.dtm.cli import main
from reproalign.dtm.merge import released
from reproalign.dtm.merge.sub_models import run_of, sub_models

ADAPTER = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_random(tmp_path_factory.mktemp("base") / "model", seed=0, dtype=torch.float32)


@pytest.fixture(scope="module")
def adapters(tmp_path_factory, base) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return [save_random_adapter(folder / str(seed), base, seed, shared=True, init_lora_weights=True) for seed in (1, 2)]


def record(folder: Path, status: str = "finished", **config) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = {"command": "dtm train", "status": status, "config": config}
    (folder / "run.json").write_text(json.dumps(content))


def runs(folder: Path, adapters: list[Path], **config) -> Path:
    """The folder of ``dtm train clusters=all``: a run, and a run with a model for each cluster."""
    record(folder, clusters="all", **config)
    for cluster, adapter in enumerate(adapters):
        record(folder / f"cluster-{cluster}", cluster=str(cluster), **config)
        shutil.copytree(adapter, folder / f"cluster-{cluster}" / "model")
    return folder


def merge(folder: Path, models: object, *words: object) -> Path:
    given = models if isinstance(models, str | Path) else f"[{','.join(map(str, models))}]"
    assert main(["merge", f"models={given}", *map(str, words), f"output_dir={folder}"]) == 0
    return folder


def states(adapters: list[Path]) -> list[dict[str, torch.Tensor]]:
    return [load_file(adapter / ADAPTER) for adapter in adapters]


def test_models_are_named_as_runs_folders_or_the_releases_files(tmp_path, adapters):
    folder = runs(tmp_path / "train", adapters)
    models = [str(folder / f"cluster-{cluster}" / "model") for cluster in (0, 1)]
    assert sub_models(str(folder)) == models
    assert sub_models([str(folder / "cluster-1"), models[0]]) == models[::-1]
    assert sub_models(",".join(f"{model}/{ADAPTER}" for model in models)) == models
    assert sub_models([f"{models[0]}/adapter_model.bin", "org/model"]) == [models[0], "org/model"]
    assert run_of(models[1])[1]["config"]["cluster"] == "1"


def test_a_sub_model_that_is_missing_or_unfinished_is_named(tmp_path, adapters):
    (tmp_path / "disperse").mkdir()
    (tmp_path / "disperse" / "dispersal.json").write_text('{"clusters": 3}')
    folder = runs(tmp_path / "train", adapters, dispersal=str(tmp_path / "disperse"))
    with pytest.raises(UserError, match="sub-model cluster-2 is missing"):
        sub_models(str(folder))
    record(folder, clusters="0+1")
    record(folder / "cluster-1", status="interrupted")
    with pytest.raises(UserError, match="sub-model cluster-1 is interrupted"):
        sub_models(str(folder))
    record(folder / "cluster-1")
    shutil.rmtree(folder / "cluster-0" / "model")
    with pytest.raises(UserError, match="cluster-0 left no model"):
        sub_models(str(folder))
    with pytest.raises(UserError, match="no such file"):
        sub_models([str(tmp_path / "nothing" / ADAPTER)])


def test_clusters_and_variations_are_taken_in_the_order_of_their_run(tmp_path, adapters):
    folder = runs(tmp_path / "train", adapters)
    record(folder, clusters="0+5")
    (folder / "cluster-1").rename(folder / "cluster-5")
    assert [Path(model).parent.name for model in sub_models(str(folder))] == ["cluster-0", "cluster-5"]
    for number in (0, 1):
        (folder / f"cluster-{5 * number}").rename(folder / f"variation-{number}")
    record(folder, variations=[{"seed": 1}, {"seed": 2}])
    assert [Path(model).parent.name for model in sub_models(str(folder))] == ["variation-0", "variation-1"]


def test_released_is_the_factor_average_in_float32_whatever_the_ratios_sum_to(tmp_path, adapters):
    """R4: each LoRA factor is averaged on its own, by the released script and by ``space=factor``."""
    folder = merge(tmp_path / "run", adapters, "variant=released", "weights=3,1")
    first, second = states(adapters)
    for name, tensor in load_file(folder / "adapter" / ADAPTER).items():
        assert torch.allclose(tensor, 0.75 * first[name] + 0.25 * second[name])
        assert tensor.dtype == torch.float32
    core = merge(tmp_path / "core", adapters, "space=factor", "weights=[3,1]")
    for name, tensor in load_file(core / "adapter" / ADAPTER).items():
        assert torch.allclose(tensor, load_file(folder / "adapter" / ADAPTER)[name], rtol=1e-6, atol=1e-7)
    found = json.loads((folder / "run.json").read_text())
    assert found["metrics"]["factor_delta_gap"] < 1e-6  # all A are equal here
    assert (folder / "adapter" / "adapter_config.json").is_file()


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("output", ["adapter", "model"])
def test_copies_of_an_adapter_are_that_adapter(tmp_path, base, adapters, variant, output):
    copies = [adapters[0]] * 4
    folder = merge(tmp_path / "run", copies, f"variant={variant}", f"output={output}")
    alone = merge(tmp_path / "alone", [adapters[0]], f"output={output}")
    for name, tensor in tensors_of(alone / output).items():
        assert torch.allclose(tensors_of(folder / output)[name], tensor, rtol=1e-6, atol=1e-6), name


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["aggregation=sum"], lambda v: v.sum(0)),
        (["aggregation=magnitude"], lambda v: torch.where(v[0].abs() >= v[1].abs(), v[0], v[1])),
        (["method=task_arithmetic", "scale=0.3"], lambda v: 0.3 * v.sum(0)),
        (["method=ties", "density=0.4", "scale=2"], lambda v: 2 * released.ties(v, density=0.4)),
        (["method=ties", "norm_fraction=0.5"], lambda v: released.ties(v, norm_fraction=0.5)),
        (
            ["method=ties", "zero_signs=minority", "aggregation=dis-max"],
            lambda v: released.ties(v, zeros="minority", mode="dis-max"),
        ),
        (["method=dare", "drop=0", "weights=1,3"], lambda v: 0.25 * v[0] + 0.75 * v[1]),
    ],
)
def test_released_methods_act_on_the_flattened_factors(tmp_path, adapters, words, expected):
    folder = merge(tmp_path / "run", adapters, "variant=released", *words)
    vectors = torch.stack([released.flatten(state) for state in states(adapters)])
    found = released.flatten(load_file(folder / "adapter" / ADAPTER))
    assert torch.allclose(found, expected(vectors), rtol=1e-5, atol=1e-6)


def test_released_task_vectors_start_from_the_initial_adapter_if_one_is_given(tmp_path, adapters):
    words = ("variant=released", "method=task_arithmetic", "scale=1", f"initial={adapters[0]}")
    folder = merge(tmp_path / "run", adapters, *words)
    found = load_file(folder / "adapter" / ADAPTER)
    for name, tensor in states(adapters)[1].items():
        assert torch.allclose(found[name], tensor, atol=1e-6), name


def test_inputs_are_left_as_they_are(adapters):
    given = states(adapters)
    before = [{name: tensor.clone() for name, tensor in state.items()} for state in given]
    merged = released.basic_merging("mean", given, remove=[next(iter(given[0]))])
    assert len(merged) == len(given[0]) - 1
    for state, kept in zip(given, before, strict=True):
        assert state.keys() == kept.keys()
        assert all(torch.equal(state[name], kept[name]) for name in state)
    storages = {tensor.untyped_storage().data_ptr() for tensor in merged.values()}
    assert len(storages) == len(merged)


@pytest.mark.parametrize(
    "words", [["method=ties"], ["method=dare"], ["method=task_arithmetic", "scale=0.5"], ["space=full"]]
)
def test_paper_methods_merge_into_a_model_by_the_cores_engine(tmp_path, base, adapters, words):
    folder = merge(tmp_path / "run", adapters, *words, "output=model")
    found, before = tensors_of(folder / "model"), tensors_of(base)
    changed = [name for name, tensor in found.items() if not torch.equal(tensor, before[name])]
    assert changed
    assert all("q_proj" in name or "down_proj" in name for name in changed)


def test_dare_keeps_the_average_on_the_whole(tmp_path, base, adapters):
    """E[m τ / (1 - p)] = τ: the sum over all entries and several seeds is near that of the average."""
    average = tensors_of(merge(tmp_path / "average", adapters, "output=model") / "model")
    name = "model.layers.0.mlp.down_proj.weight"
    masks = [
        tensors_of(merge(tmp_path / str(seed), adapters, "method=dare", "drop=0.5", f"seed={seed}") / "model")
        for seed in range(3)
    ]
    assert len({tuple(mask[name].flatten().tolist()) for mask in masks}) == 3
    mean = torch.stack([mask[name] for mask in masks]).mean(0)
    assert float((mean - average[name]).norm() / (average[name] - tensors_of(base)[name]).norm()) < 1


def test_the_ensemble_is_a_model_folder(tmp_path, adapters):
    folder = merge(tmp_path / "run", runs(tmp_path / "train", adapters), "method=ensemble", "weights=1,3")
    content = json.loads((folder / "model" / "ensemble.json").read_text())
    assert content["weights"] == [0.25, 0.75]
    assert content["members"] == ["../../train/cluster-0/model", "../../train/cluster-1/model"]


def rows_and_labels(folder: Path) -> dict[str, list[str]]:
    rows = [{"instruction": f"say {n}", "input": "", "output": f"{n} it is"} for n in range(8)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "labels.json").write_text(json.dumps([0, 1] * 4))
    return {"rows": [str(folder / "rows.jsonl")], "labels": [str(folder / "labels.json")]}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_statistics_are_measured_on_each_sub_models_own_rows(tmp_path, base, adapters, method):
    files = rows_and_labels(tmp_path)
    folder = runs(tmp_path / "train", adapters, variant="paper", seed=7, tokens={"max_length": 512}, **files)
    run = merge(tmp_path / "run", folder, f"method={method}", "statistics=auto", "statistics_rows=3")
    kind = {"fisher": "fisher", "regmean": "gram"}[method]
    measured = []
    for number in (0, 1):
        child = json.loads((run / f"statistics-{number}" / "run.json").read_text())
        assert child["status"] == "finished"
        assert (child["config"]["cluster"], child["config"]["seed"]) == (str(number), 7)
        assert (child["rows"]["of_clusters"], child["rows"]["measured"]) == (4, 3)
        measured.append(run / f"statistics-{number}" / "statistics")
        facts = json.loads((measured[-1] / "statistics.json").read_text())
        assert (facts["kind"], facts["rows"]) == (kind, 3)
    again = merge(tmp_path / "again", folder, f"method={method}", f"statistics=[{measured[0]},{measured[1]}]")
    found, expected = tensors_of(run / "model"), tensors_of(again / "model")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


REFUSED = [
    (["weights=1,2,3"], "weights=1,2,3: 3 numbers for 2 models"),
    (["weights=1,x"], "weights=1,x: numbers are expected"),
    (["weights=[1,-1]", "allow_extrapolation=true"], "sum to 0"),
    (["weights=[2,-1]"], "set allow_extrapolation=true"),
    (["weights=[2,.inf]"], "weights="),
    (["method=task_arithmetic"], "scale is not set; method=task_arithmetic needs λ"),
    (["method=mean"], "unknown method 'mean'"),
    (["density=0.2"], "density has no meaning for method=average (only for ties)"),
    (["method=ties", "drop=0.2"], "drop has no meaning for method=ties (only for dare)"),
    (["method=dare", "drop=1"], "drop=1.0 must be at least 0 and below 1"),
    (["method=ties", "density=0"], "density=0.0 must be above 0"),
    (["aggregation=sum"], "aggregation is read by variant=released alone"),
    (["variant=released", "method=ties", "trim_scope=model"], "trim_scope is read by variant=paper alone"),
    (["variant=released", "method=fisher"], "none of the authors' scripts"),
    (["variant=released", "space=delta"], "the authors' scripts merge factors"),
    (["variant=released", "aggregation=sum", "weights=1,1"], "weights have no meaning for aggregation=sum"),
    (["variant=released", "method=ties", "density=0.1", "norm_fraction=0.5"], "remove one"),
    (["variant=released", "method=ties", "density=1"], "cannot keep everything"),
    (["method=ties", "space=factor"], "space=factor with method=ties is variant=released"),
    (["method=ties", "output=adapter"], "the result of method=ties is no adapter"),
    (["rank=2", "output=model"], "rank recompresses"),
    (["method=fisher"], "statistics is not set"),
    (["method=fisher", "statistics=auto"], "says which rows it was trained on"),
    (["method=fisher", "statistics=[a]"], "a list of 2 folders is expected"),
    (["method=fisher", "statistics=[a,b]"], "statistics: a: no such file or folder"),
    (["method=fisher", "statistics=[a,b]", "statistics_rows=3"], "statistics_rows is for statistics=auto"),
    (["method=ensemble", "dtype=float32"], "dtype has no meaning for method=ensemble"),
    (["space=full", "output=adapter"], "the result of space=full is no adapter"),
]


@pytest.mark.parametrize(("words", "message"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_what_has_no_meaning_is_refused_in_one_sentence(tmp_path, adapters, capsys, words, message):
    line = ["merge", f"models=[{adapters[0]},{adapters[1]}]", *words, f"output_dir={tmp_path / 'run'}"]
    assert message in refusal("dtm", main, line, capsys, untouched=tmp_path)


def test_a_folder_that_is_not_there_is_no_model(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for variant in ("paper", "released"):
        words = ["merge", "models=runs/none/train", f"variant={variant}", "output_dir=out"]
        assert "models=runs/none/train: no such folder" in refusal("dtm", main, words, capsys, untouched=tmp_path)


def test_models_that_do_not_belong_together_are_refused(tmp_path, base, adapters, capsys):
    def refused(models: list[Path], *words: str) -> str:
        line = ["merge", f"models=[{','.join(map(str, models))}]", *words, f"output_dir={tmp_path / 'run'}"]
        return refusal("dtm", main, line, capsys, untouched=tmp_path)

    assert "is an adapter and" in refused([adapters[0], base])
    assert "variant=released merges adapters" in refused([base, base], "variant=released")
    assert "is a full model; remove it" in refused([base, base], "space=delta")
    other = save_random_adapter(tmp_path / "other", base, 3, r=2)
    assert "differ in r" in refused([adapters[0], other], "variant=released")
    (wrong,) = [shutil.copytree(adapters[1], tmp_path / "wrong")]
    (wrong / "adapter_manifest.json").write_text('{"initial_a_sha256": "a"}')
    (first,) = [shutil.copytree(adapters[0], tmp_path / "first")]
    (first / "adapter_manifest.json").write_text('{"initial_a_sha256": "b"}')
    assert "began at different A" in refused([first, wrong], "variant=released")
    assert "its tensors are not those" in refused(
        adapters, "variant=released", "method=task_arithmetic", "scale=1", f"initial={other}"
    )
