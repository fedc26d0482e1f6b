"""``ratios.json`` and the release's ``mask_alphas.bin``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reproalign.ama.parts import parts_of_layers
from reproalign.ama.ratios_file import Ratios, read_ratios, write_ratios
from reproalign.common.errors import UserError

RATIOS = Ratios(
    "block3",
    {"0": 0.3, "1": 0.2, "2": 0.1},
    0.2,
    (0.2, 0.1923),
    epsilon=0.2,
    tensors="linear_head_post",
    head="base",
    found={"objective": "likelihood", "steps": 12},
    pre={"name": "sft", "sha256": "ab"},
    post={"name": "rlhf", "sha256": "cd"},
)


def masked(folder: Path, groups: dict, layers: list, **changed) -> Path:
    """A file as ``mask_trainer.py`` saves it: a scalar for each group, shared by the linear layers."""
    scalars = {group: torch.nn.Parameter(torch.tensor(raw)) for group, raw in groups.items()}
    modules = [
        f"model.layers.{layer}.{name}" for layer in range(len(layers)) for name in ("mlp.up_proj", "mlp.down_proj")
    ]
    content = {
        "mask_alphas": {name: scalars[layers[index // 2]] for index, name in enumerate(modules)},
        "mask_bkp_alphas": scalars,
        "init_val": 0.2,
        "epsilon": 0.1,
        "base_gammas": {},
    }
    folder.mkdir(exist_ok=True)
    torch.save(
        {key: value for key, value in (content | changed).items() if value is not None}, folder / "mask_alphas.bin"
    )
    return folder


def h(raw: float, epsilon: float) -> float:
    return float(torch.sigmoid(torch.tensor(raw, dtype=torch.float64))) + epsilon


def test_what_is_written_is_read(tmp_path):
    write_ratios(tmp_path / "ratios.json", RATIOS)
    assert read_ratios(str(tmp_path)) == read_ratios(str(tmp_path / "ratios.json")) == RATIOS
    assert json.loads((tmp_path / "ratios.json").read_text())["alpha_on"] == "pre"


@settings(max_examples=20)
@given(raws=st.lists(st.floats(-6, 6), min_size=3, max_size=3), equal=st.booleans())
def test_the_releases_file_gives_ratios_whose_mean_is_the_base(tmp_path_factory, raws, equal):
    raws[1] = raws[0] if equal else raws[1]
    groups = dict(enumerate(raws))
    folder = masked(tmp_path_factory.mktemp("bin"), groups, [0] * 8 + [1] * 8 + [2] * 10)
    found = read_ratios(str(folder), allow_bin=True)
    total = sum(h(raw, 0.1) for raw in raws)
    assert found.level == "7#15"  # equal ratios of two groups do not make them one
    assert list(found.groups) == ["0", "1", "2"]
    for ratio, raw in zip(found.groups.values(), raws, strict=True):
        assert ratio == pytest.approx(0.2 * 3 * h(raw, 0.1) / total, rel=1e-5)
    assert found.means[0] == pytest.approx(0.2, rel=1e-5)
    assert (found.base, found.tensors, found.head, found.variant) == (0.2, "linear_head_pre", "base", "released")


def test_a_heads_own_scalar_counts_in_the_sum_and_is_noted(tmp_path):
    found = read_ratios(str(masked(tmp_path / "run", {0: 0.0, 1: 0.0, "lm_head": 2.0}, [0, 1])), allow_bin=True)
    total = 2 * h(0.0, 0.1) + h(2.0, 0.1)
    assert found.groups["0"] == pytest.approx(0.6 * h(0.0, 0.1) / total, rel=1e-6)
    assert found.found["head"] == pytest.approx(0.6 * h(2.0, 0.1) / total, rel=1e-6)


def test_the_releases_file_without_epsilon_has_its_default(tmp_path):
    found = read_ratios(str(masked(tmp_path / "run", {0: -3.0, 1: 1.0}, [0, 1], epsilon=None)), allow_bin=True)
    assert found.epsilon == 1e-6
    assert found.groups["0"] == pytest.approx(0.4 * h(-3.0, 1e-6) / (h(-3.0, 1e-6) + h(1.0, 1e-6)), rel=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"init_val": None}, "'init_val' is missing"),
        ({"mask_bkp_alphas": None}, "'mask_bkp_alphas' is missing"),
        ({"mask_bkp_alphas": {}}, "ratios are not finite"),
    ],
)
def test_a_released_file_that_says_too_little_is_refused(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        read_ratios(str(masked(tmp_path / "run", {0: 0.0}, [0, 0], **change)), allow_bin=True)


def test_linearwise_files_of_the_release_are_refused(tmp_path):
    scalars = {f"model.layers.0.{name}": torch.nn.Parameter(torch.rand(())) for name in ("q", "k")}
    torch.save({"mask_alphas": scalars, "mask_bkp_alphas": {}, "init_val": 0.2}, tmp_path / "mask_alphas.bin")
    with pytest.raises(UserError, match="linearwise"):
        read_ratios(str(tmp_path), allow_bin=True)


def test_pickled_files_are_read_only_if_allowed_and_never_executed(tmp_path):
    with pytest.raises(UserError, match=r"pickled; add allow=\[bin\]"):
        read_ratios(str(masked(tmp_path / "run", {0: 0.0}, [0])))
    torch.save({"mask_alphas": Path("x")}, tmp_path / "mask_alphas.bin")
    with pytest.raises(UserError, match=r"not loadable with torch\.load"):
        read_ratios(str(tmp_path), allow_bin=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 2"),
        ({"alpha_on": "post"}, "alpha_on is 'post'"),
        ({"groups": {}}, "'groups' must map names to numbers"),
        ({"groups": {"0": "a"}}, "and 'base' be a number, not a"),
        ({"base": None}, "'base' be a number"),
        ({"level": None}, "'level' is missing"),
        ({"mean": None}, "'mean' is missing"),
        ({"pre": "folder"}, "'pre' must be a mapping, not folder"),
        ({"tensors": 3}, "'tensors' must be a word, not 3"),
        ({"tensors": "released_mah"}, r"ratios\.json: unknown tensors 'released_mah' \(did you mean 'released_ma'\?\)"),
        ({"head": "pre"}, r"ratios\.json: unknown head 'pre'"),
    ],
)
def test_files_of_another_form_are_refused(tmp_path, change, message):
    write_ratios(tmp_path / "ratios.json", RATIOS)
    content = json.loads((tmp_path / "ratios.json").read_text()) | change
    (tmp_path / "ratios.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        read_ratios(str(tmp_path))


def test_files_that_are_missing_are_named(tmp_path):
    with pytest.raises(UserError, match="is no file or folder"):
        read_ratios(str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"holds neither ratios\.json nor mask_alphas\.bin"):
        read_ratios(str(tmp_path))


def test_ratios_of_another_model_are_refused():
    with pytest.raises(UserError, match=r"3 groups of block3 .* the model has 2 \(0, 1\)"):
        RATIOS.of(parts_of_layers("block3", 12), "ratios.json")
