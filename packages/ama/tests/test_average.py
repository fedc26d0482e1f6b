"""``ama average``: the equations on small models, what is written, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor
from transformers import AutoModelForCausalLM

from reproalign.ama.average.config import AverageConfig
from reproalign.ama.average.engine import moving_average_weights
from reproalign.ama.average.names import read_name, read_released_name
from reproalign.ama.average.verb import check_models, check_options
from reproalign.ama.cli import main
from reproalign.ama.parts import parts_of_layers
from reproalign.ama.ratios_file import Ratios, read_ratios, write_ratios
from reproalign.common.errors import UserError
from reproalign.common.models.identify import identify_weights
from reproalign.common.testing import refusal
from reproalign.common.testing.checkpoints import save_random, save_random_adapter, tensors_of

LAYERS = 4


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """A model before and one after of several architectures, and two more of Llama's."""
    root = tmp_path_factory.mktemp("models")
    pairs = {
        f"{kind}-{name}": (kind, seed) for kind in ("llama", "gemma2") for seed, name in enumerate(("pre", "post"))
    }
    pairs |= {"llama-2": ("llama", 2), "llama-3": ("llama", 3)}
    return {name: save_random(root / name, kind, seed=seed) for name, (kind, seed) in pairs.items()}


def average(folder: Path, models: dict[str, Path], *words: str, kind: str = "llama") -> dict[str, Tensor]:
    given = [f"pre={models[f'{kind}-pre']}", f"post={models[f'{kind}-post']}", *words, "verify=headers"]
    assert main(["average", *given, f"output_dir={folder}"]) == 0
    return tensors_of(folder / "model")


def of(models: dict[str, Path], name: str) -> dict[str, Tensor]:
    return tensors_of(models[name])


def layer(name: str) -> int | None:
    found = name.split(".layers.")[1:]
    return int(found[0].split(".")[0]) if found else None


def record(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def check(merged: dict[str, Tensor], pre: dict[str, Tensor], post: dict[str, Tensor], ratio) -> None:
    """Every tensor is a · pre + (1 - a) · post in float32, rounded once."""
    assert merged.keys() == pre.keys()
    for name, tensor in merged.items():
        a = ratio(name)
        expected = pre[name].float() * a + post[name].float() * (1 - a) if 0 < a < 1 else (pre if a else post)[name]
        size = pre[name].float().abs() + post[name].float().abs()
        assert ((tensor.float() - expected.float()).abs() <= 2**-7 * size).all(), name  # bfloat16 holds 8 bits
        assert tensor.dtype == torch.bfloat16


def linear(name: str) -> bool:
    return "_proj" in name


def test_the_papers_average_is_of_linear_layers_and_head_the_rest_being_post(tmp_path, models):
    """R1, tensor by tensor."""
    merged = average(tmp_path / "run", models)
    pre, post = of(models, "llama-pre"), of(models, "llama-post")
    check(merged, pre, post, lambda name: 0.2 if linear(name) or name == "lm_head.weight" else 0.0)
    assert torch.equal(merged["model.norm.weight"], post["model.norm.weight"])


@pytest.mark.parametrize("rule", ["released_ma", "linear_head_pre", "linear_head_post"])
@pytest.mark.parametrize(("alpha", "name"), [("0", "post"), ("1", "pre")])
def test_ratios_of_zero_and_one_are_the_models_bit_for_bit(tmp_path, models, rule, alpha, name):
    """R1 at its ends: α = 1 is θ_0, α = 0 is θ."""
    merged = average(tmp_path / "run", models, f"alpha={alpha}", f"tensors={rule}")
    expected = of(models, f"llama-{name}")
    fixed = {"linear_head_pre": "pre", "linear_head_post": "post"}.get(rule)
    for tensor, values in merged.items():
        averaged = fixed is None or linear(tensor) or tensor == "lm_head.weight"
        source = expected if averaged else of(models, f"llama-{fixed}")
        assert torch.equal(values.view(torch.int16), source[tensor].view(torch.int16)), tensor


@pytest.mark.parametrize("variant", ["paper", "released"])
def test_parts_have_ratios_of_their_own(tmp_path, models, variant):
    """R2: the layers of a part are averaged by its ratio, the head by the base."""
    words = ("parts=0#2", "ratios=[0.4,0.3,0.1]", "alpha=0.25", "tensors=released_ma", f"variant={variant}")
    merged = average(tmp_path / "run", models, *words)

    def ratio(name: str) -> float:
        if name in ("lm_head.weight", "model.norm.weight"):
            return 0.25
        return {None: 0.4, 0: 0.4, 1: 0.3, 2: 0.3, 3: 0.1}[layer(name)]

    check(merged, of(models, "llama-pre"), of(models, "llama-post"), ratio)
    metrics = record(tmp_path / "run")["metrics"]
    assert metrics["mean_ratio"] == pytest.approx(0.8 / 3)
    assert metrics["layer_weighted_mean_ratio"] == pytest.approx((0.4 + 0.3 + 0.3 + 0.1) / 4)


def test_the_released_arithmetic_rounds_every_step(tmp_path, models):
    merged = average(tmp_path / "run", models, "variant=released", "alpha=0.3")
    pre, post = of(models, "llama-pre"), of(models, "llama-post")
    exact = average(tmp_path / "paper", models, "alpha=0.3", "tensors=released_ma")
    for name, tensor in merged.items():
        assert torch.equal(tensor, pre[name] * 0.3 + post[name] * 0.7), name
    assert any(not torch.equal(exact[name], tensor) for name, tensor in merged.items())


def test_the_release_reads_models_in_bfloat16(tmp_path, models):
    folder = save_random(tmp_path / "wide", seed=0, dtype=torch.float32)
    wide = tensors_of(folder)
    merged = average(tmp_path / "run", models | {"llama-pre": folder}, "variant=released", "alpha=0.3")
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(merged[name], wide[name].bfloat16() * 0.3 + of(models, "llama-post")[name] * 0.7)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["parts=even2", "ratios=[0.9,0.6]"], [0.1, 0.1, 0.4, 0.4]),
        (["alpha=0.8"], [0.2] * 4),
        (["alpha=0.8", "parts=even2", "pattern=[0,0.1]"], [0.2, 0.2, 0.1, 0.1]),
        (["alpha=0.7", "only=input"], [0.3, 0, 0, 0]),
    ],
)
def test_alpha_on_post_is_converted_once(tmp_path, models, words, expected):
    merged = average(tmp_path / "run", models, *words, "alpha_on=post", "head=post")
    ratios = dict(enumerate(expected))
    check(
        merged,
        of(models, "llama-pre"),
        of(models, "llama-post"),
        lambda name: ratios[layer(name)] if linear(name) else 0,
    )
    saved = read_ratios(str(tmp_path / "run"))
    assert set(saved.groups.values()) == set(expected)


def test_a_pattern_is_added_to_the_base(tmp_path, models):
    words = ("alpha=0.3", "pattern=[0,-0.1,-0.1]", "parts=0#1")
    merged = average(tmp_path / "run", models, *words)
    ratios = {None: 0.3, 0: 0.3, 1: 0.2, 2: 0.2, 3: 0.2}
    check(
        merged,
        of(models, "llama-pre"),
        of(models, "llama-post"),
        lambda name: ratios[layer(name)] if linear(name) or "lm_head" in name else 0.0,
    )
    assert record(tmp_path / "run")["average"]["ratios"] == {"0": 0.3, "1": 0.2, "2": 0.2}


@pytest.mark.parametrize("rule", ["released_ma", "linear_head_post"])
@pytest.mark.parametrize(("part", "layers"), [("input", [0]), ("middle", [1]), ("output", [2, 3]), ("2", [2, 3])])
def test_one_part_alone_leaves_the_others_post(tmp_path, models, rule, part, layers):
    merged = average(tmp_path / "run", models, f"only={part}", "alpha=0.4", f"tensors={rule}")
    embedding = 0.4 if rule == "released_ma" and part == "input" else 0.0  # embeddings go with the first part

    def ratio(name: str) -> float:
        if name == "model.embed_tokens.weight":
            return embedding
        inside = layer(name) in layers and (rule == "released_ma" or linear(name))
        return 0.4 if inside else 0.0

    check(merged, of(models, "llama-pre"), of(models, "llama-post"), ratio)


def test_each_level_and_architecture_merges_and_loads(tmp_path, models):
    for number, level in enumerate(("layerwise", "linearwise", "even2", "lblock3")):
        folder = tmp_path / str(number)
        average(folder, models, f"parts={level}", "alpha=0.2", kind="gemma2")
        AutoModelForCausalLM.from_pretrained(folder / "model")
    plain = average(tmp_path / "plain", models, "alpha=0.2", kind="gemma2")
    for number in range(4):
        for name, tensor in tensors_of(tmp_path / str(number) / "model").items():
            assert torch.equal(tensor, plain[name]), name  # equal ratios are one ratio
    shared = "model.embed_tokens.weight"
    check(
        {shared: plain[shared]},
        {shared: of(models, "gemma2-pre")[shared]},
        {shared: of(models, "gemma2-post")[shared]},
        lambda _: 0.2,
    )


def test_shards_and_threads_change_no_bit(tmp_path, models):
    for variant in ("paper", "released"):
        one = average(tmp_path / variant, models, f"variant={variant}", "threads=1")
        many = average(tmp_path / f"{variant}-shards", models, f"variant={variant}", "threads=3", "shard_size=6KB")
        assert len(list((tmp_path / f"{variant}-shards" / "model").glob("*.safetensors"))) > 3
        assert one.keys() == many.keys()
        assert all(torch.equal(one[name], many[name]) for name in one)


def test_learned_ratios_are_read_with_their_rule_and_written_again(tmp_path, models):
    parts = parts_of_layers("even2", LAYERS)
    given = Ratios("even2", {"0": 0.3, "1": 0.1}, 0.2, parts.means([0.3, 0.1]), 0.2, "linear_head_pre", "base")
    write_ratios(tmp_path / "adapt" / "ratios.json", given)
    merged = average(tmp_path / "run", models, f"ratios={tmp_path / 'adapt'}")

    def ratio(name: str) -> float:
        if not linear(name):
            return 0.2 if name == "lm_head.weight" else 1.0
        return 0.3 if layer(name) < 2 else 0.1

    check(merged, of(models, "llama-pre"), of(models, "llama-post"), ratio)
    found = read_ratios(str(tmp_path / "run"))
    assert (found.groups, found.base, found.epsilon, found.tensors) == (
        {"0": 0.3, "1": 0.1},
        0.2,
        0.2,
        "linear_head_pre",
    )
    again = average(tmp_path / "again", models, f"ratios={tmp_path / 'run'}")
    assert all(torch.equal(again[name], merged[name]) for name in merged)
    average(tmp_path / "other", models, f"ratios={tmp_path / 'run'}", "tensors=linear_head_post")
    assert "found under tensors=linear_head_pre" in record(tmp_path / "other")["notes"][-1]


def test_ratios_that_were_found_for_other_weights_are_used_with_a_note(tmp_path, models):
    parts = parts_of_layers("even2", LAYERS)
    known = {
        key: {"name": key, "sha256": identify_weights(str(models[f"llama-{key}"]), None)} for key in ("pre", "post")
    }
    given = Ratios("even2", {"0": 0.3, "1": 0.1}, 0.2, parts.means([0.3, 0.1]), pre=known["pre"], post=known["post"])
    write_ratios(tmp_path / "ratios.json", given)
    words = f"ratios={tmp_path / 'ratios.json'}"
    average(tmp_path / "run", models, words)
    assert not any("found for" in note for note in record(tmp_path / "run")["notes"])
    average(tmp_path / "other", models | {"llama-post": models["llama-2"]}, words)
    (note,) = [note for note in record(tmp_path / "other")["notes"] if "found for" in note]
    assert "other weights of post (post)" in note
    assert str(models["llama-2"]) in note
    assert read_ratios(str(tmp_path / "other")).post == known["post"]  # so that the next one is told as well


def test_the_releases_learned_scalars_merge_as_its_script_does(tmp_path, models):
    scalars = {index: torch.nn.Parameter(torch.tensor(raw)) for index, raw in enumerate((-1.1, -1.6, -1.3, -1.4))}
    modules = {f"model.layers.{index}.mlp.up_proj": scalar for index, scalar in scalars.items()}
    content = {"mask_alphas": modules, "mask_bkp_alphas": scalars, "init_val": 0.2, "epsilon": 0.2}
    torch.save(content, tmp_path / "mask_alphas.bin")
    words = (f"ratios={tmp_path / 'mask_alphas.bin'}", "allow=[bin]", "variant=released")
    merged = average(tmp_path / "run", models, *words)
    pre, post = of(models, "llama-pre"), of(models, "llama-post")
    shares = [torch.sigmoid(scalar.detach()) + 0.2 for scalar in scalars.values()]
    for name, tensor in merged.items():
        a = torch.tensor(0.2) if name == "lm_head.weight" else 0.2 * shares[layer(name) or 0] / sum(shares) * 4
        expected = pre[name] * a + (1 - a) * post[name] if linear(name) or name == "lm_head.weight" else pre[name]
        assert torch.equal(tensor, expected), name


def test_a_graft_takes_the_largest_changes_of_the_whole_model_from_post(tmp_path, models):
    merged = average(tmp_path / "run", models, "method=graft", "fraction=0.1")
    pre, post = of(models, "llama-pre"), of(models, "llama-post")
    changes = torch.cat([(post[name].float() - pre[name].float()).abs().flatten() for name in sorted(merged)])
    limit = changes.sort(descending=True).values[round(0.1 * changes.numel()) - 1]
    for name, tensor in merged.items():
        large = (post[name].float() - pre[name].float()).abs() >= limit
        assert torch.equal(tensor, torch.where(large, post[name], pre[name])), name


@pytest.mark.parametrize(("reset", "expected"), [(None, [0.125, 0.125, 0.25, 0.5]), (2, [0.5, 0, 0, 0.5])])
def test_a_moving_average_weighs_checkpoints_by_their_age(tmp_path, models, reset, expected):
    names = ("llama-post", "llama-2", "llama-3")
    checkpoints = f"checkpoints=[{','.join(str(models[name]) for name in names)}]"
    words = ["average", f"pre={models['llama-pre']}", "method=sma", checkpoints, "decay=0.5"]
    words += [f"reset_every={reset}"] if reset else []
    assert main([*words, f"output_dir={tmp_path / 'run'}", "verify=headers"]) == 0
    sources = [of(models, name) for name in ("llama-pre", *names)]
    for name, tensor in tensors_of(tmp_path / "run" / "model").items():
        total = sum(weight * source[name].float() for weight, source in zip(expected, sources, strict=True))
        assert torch.allclose(tensor.float(), total.bfloat16().float(), rtol=2**-7, atol=1e-6), name


@pytest.mark.parametrize("reset", [None, 1, 3])
def test_moving_average_weights_are_those_of_the_recursion(reset):
    for count in range(1, 8):
        average, start = torch.zeros(count + 1), torch.eye(count + 1)[0]
        average = start
        for step in range(1, count + 1):
            average = 0.7 * average + 0.3 * torch.eye(count + 1)[step]
            if reset and step % reset == 0 and step < count:
                average = start
        assert moving_average_weights(count, 0.7, reset) == pytest.approx(average.tolist())


def test_adapters_are_folded_in(tmp_path, models):
    adapter = save_random_adapter(tmp_path / "adapter", models["llama-pre"], 1)
    merged = average(tmp_path / "run", models | {"llama-post": adapter}, "alpha=0.5", "tensors=released_ma")
    pre = of(models, "llama-pre")
    changed = {name for name, tensor in merged.items() if not torch.equal(tensor, pre[name])}
    assert changed
    assert all("q_proj" in name or "down_proj" in name for name in changed)


def test_norms_say_how_far_each_part_moved(tmp_path, models):
    average(tmp_path / "run", models, "parts=even2", "norms=true")
    found = record(tmp_path / "run")["norms"]
    pre, post = of(models, "llama-pre"), of(models, "llama-post")
    names = [name for name in pre if linear(name) and layer(name) < 2]
    change = sum((post[name].double() - pre[name].double()).square().sum() for name in names).sqrt()
    assert found["0"]["change"] == pytest.approx(float(change))
    assert found["0"]["relative"] == pytest.approx(found["0"]["change"] / found["0"]["norm"])
    assert set(found) == {"0", "1", "base", "not averaged"}


@pytest.mark.parametrize(
    ("path", "level", "ratios", "head_post"),
    [
        ("pma_0.2_tag_split|10#20|0.4|0.3|0.2_tag", "10#20", (0.4, 0.3, 0.2), False),
        ("a_b/pma_0.3_a_split0|7|0.3|0.1_b", "7", (0.3, 0.1), True),
        ("a_b/ma_0.25_s_r", "", (), False),
    ],
)
def test_the_releases_names_are_understood(path, level, ratios, head_post):
    name = read_name(path)
    assert (name.level, name.ratios, name.head_post) == (level, ratios, head_post)
    assert name == read_released_name(path)


@pytest.mark.parametrize("path", ["pma_0.4_a_split|1#2|0.4|0.3|0.2_b_c", "pma_0.4_a_b_split|1|0.4|0.3", "pma_0.4_a_b"])
def test_names_that_the_release_silently_takes_for_a_plain_average_are_refused(path):
    assert not read_released_name(path).part_wise
    with pytest.raises(UserError, match="must stand between the last two '_'"):
        read_name(path)


def test_a_name_gives_the_same_model_as_the_keys_that_it_stands_for(tmp_path, models):
    name = "name='pma_0.2_a_split|0#1|0.4|0.3|0.1_b'"
    paper = average(tmp_path / "name", models, name)
    keys = ("alpha=0.2", "parts=0#1", "ratios=[0.4,0.3,0.1]", "tensors=released_ma")
    for name_, tensor in average(tmp_path / "keys", models, *keys).items():
        assert torch.equal(paper[name_], tensor), name_
    released = average(tmp_path / "released", models, name, "variant=released")
    for name_, tensor in average(tmp_path / "both", models, *keys, "variant=released").items():
        assert torch.equal(released[name_], tensor), name_


def test_the_released_reading_of_a_name_takes_unordered_and_distant_split_points(tmp_path, capsys, models):
    name = "name='pma_0.2_a_split|20#1|0.4|0.3|0.1_b'"
    merged = average(tmp_path / "run", models, name, "variant=released")
    pre, post = of(models, "llama-pre"), of(models, "llama-post")
    for key, tensor in merged.items():
        a = 0.2 if key in ("lm_head.weight", "model.norm.weight") else 0.1 if (layer(key) or 0) > 1 else 0.4
        assert torch.equal(tensor, pre[key] * a + post[key] * (1 - a)), key
    assert "split points must rise" in refusal_of(models, capsys, tmp_path / "no", name)


def test_an_interrupted_average_is_resumed(tmp_path, models, monkeypatch):
    from reproalign.common.merging.rules import Linear

    words = ("alpha=0.3", "shard_size=6KB", "threads=1")
    expected = average(tmp_path / "whole", models, *words)
    prepare, calls = Linear.prepare, []

    def stop(self, operands, over):
        calls.append(operands.name)
        if len(calls) == 15:
            raise KeyboardInterrupt
        return prepare(self, operands, over)

    given = [f"pre={models['llama-pre']}", f"post={models['llama-post']}", *words, "verify=headers"]
    command = ["average", *given, f"output_dir={tmp_path / 'run'}"]
    with monkeypatch.context() as patch:
        patch.setattr(Linear, "prepare", stop)
        assert main(command) != 0
    assert not (tmp_path / "run" / "model").exists()
    assert record(tmp_path / "run")["status"] == "interrupted"
    calls.clear()
    monkeypatch.setattr(Linear, "prepare", lambda *args: calls.append(1) or prepare(*args))
    assert main(command) == 0
    assert 0 < len(calls) < len(expected)  # finished files were kept
    found = tensors_of(tmp_path / "run" / "model")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_dry_run_says_ratios_and_rules_and_writes_nothing(tmp_path, models, capsys):
    given = [f"pre={models['llama-pre']}", f"post={models['llama-post']}", "parts=even2", "ratios=[0.4,0.1]"]
    assert main(["average", *given, f"output_dir={tmp_path / 'run'}", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "0.25" in shown
    assert "layers.0-1.attention" in shown
    assert "0.4, 0.6" in shown
    assert not (tmp_path / "run").exists()


def refusal_of(models: dict[str, Path], capsys, folder: Path, *words: str) -> str:
    """Return what the command says, having left nothing."""
    said = refusal("ama", main, ["average", *filled(models, words), f"output_dir={folder}"], capsys)
    assert not folder.exists()
    return said


def filled(models: dict[str, Path], words: Sequence[str]) -> list[str]:
    """Return the words with the models that they do not name themselves."""
    missing = [key for key in ("pre", "post") if not any(word.startswith((f"{key}=", f"no_{key}")) for word in words)]
    return [*(f"{key}={models[f'llama-{key}']}" for key in missing), *(w for w in words if not w.startswith("no_"))]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["alpha=1.2"], "a ratio of 1.2 on pre lies outside 0 to 1, beyond the two models; add allow=[extrapolation]"),
        (["parts=even2", "ratios=[0.4,-0.1]"], "a ratio of -0.1 on pre lies outside"),
        (["pattern=[0,0.9,0]"], "a ratio of 1.1 on pre lies outside"),
        (["parts=1#0", "ratios=[0.1,0.2,0.3]"], "split points must rise, or parts overlap; write 0#1"),
        (["parts=1#1", "ratios=[0.1,0.2,0.3]"], "split points must rise"),
        (["parts=1#3", "ratios=[0.1,0.2,0.3]"], "split point 3 leaves nothing above it"),
        (
            ["parts=even2", "ratios=[0.1,0.2,0.3]"],
            "ratios: 3 numbers for the 2 parts of parts=even2; give one for each",
        ),
        (["parts=block3", "ratios=[0.1,0.2,0.3]"], "ratios: 3 numbers for the 1 parts of parts=block3 of 4 layers"),
        (["parts=block3", "pattern=[0,0]"], "pattern: 2 numbers"),
        (["parts=even9"], "only 4 layers"),
        (["ratios=[0.1,x,0.3]"], "ratios=x must be a finite number"),
        (["ratios=[.nan,0.1,0.3]"], "must be a finite number"),
        (["ratios=[]"], "give a list of numbers"),
        (["ratios=nothing-there"], "is no file or folder"),
        (["pre=/nowhere"], "pre=/nowhere: no such folder"),
        (["post=/nowhere"], "post=/nowhere: no such folder"),
        (
            ["no_post", "method=sma", "decay=0.5", "checkpoints=[/nowhere]"],
            "checkpoints[0]=/nowhere: no such folder",
        ),
        (["ratios=[0.1,0.1,0.1]", "only=input"], "ratios and only both say the ratios; remove one"),
        (["only=top"], "only=top is no part of parts=paper3"),
        (["head=learned"], "parts=block1 learn no ratio for the head"),
        (["fraction=0.1"], "fraction has no meaning for method=ma, only for graft; remove it"),
        (["alpha=0.1", "method=graft", "fraction=0.1"], "alpha has no meaning for method=graft"),
        (["method=graft"], "fraction is not set"),
        (["method=graft", "fraction=0.5", "norms=true"], "norms has no meaning for method=graft"),
        (["method=sma", "decay=0.5"], "post has no meaning for method=sma"),
        (["method=sma", "no_post"], "checkpoints is not set"),
        (["method=sma", "no_post", "checkpoints=[a]"], "decay is not set"),
        (["no_post"], "post is not set"),
        (["post=nothing/there/at/all"], "nothing/there/at/all"),
        (["variant=released", "accumulate=float64"], "accumulate has no meaning for variant=released"),
        (["name='pma_0.2_a_split|0#1|0.4|0.3|0.1_b_c'"], "must stand between the last two '_'"),
        (["name=plain"], "no '_' in it"),
        (["name='pma_0.2_a_split|0#1|0.4|0.3_b'"], "2 ratios for the 3 parts"),
        (["name=ma_0.2_a_b", "alpha=0.3"], "alpha=0.3 is not that of name"),
        (["name=x_a_b"], "alpha is not set"),
        (["name=ma_0.2_a_b", "parts=even2"], "parts has no meaning beside name"),
        (["name=ma_0.2_a_b", "alpha_on=post"], "alpha_on=post has no meaning beside name"),
    ],
)
def test_wrong_keys_are_one_sentence(tmp_path, models, words, message):
    given = OmegaConf.from_dotlist([*filled(models, words), f"output_dir={tmp_path / 'run'}"])
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(AverageConfig), given))
    with pytest.raises(UserError) as found:
        check_models(config)  # what the command does before it writes
    assert message in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["parts=1#0", "ratios=[0.1,0.2,0.3]"], "split points must rise"),
        (["parts=block3", "ratios=[0.1,0.2,0.3]"], "3 numbers for the 1 parts"),
        (["tensors=all"], "unknown tensors 'all'"),
    ],
)
def test_a_refused_command_leaves_nothing(tmp_path, capsys, models, words, message):
    assert message in refusal_of(models, capsys, tmp_path / "run", *words)


def test_models_that_do_not_fit_are_one_sentence(tmp_path, capsys, models):
    wide = save_random(tmp_path / "wide", seed=1, hidden_size=32)
    deep = save_random(tmp_path / "deep", seed=1, num_hidden_layers=5)
    for post in (models["gemma2-post"], wide, deep):
        said = refusal_of(models, capsys, tmp_path / "run", f"post={post}")
        assert str(post) in said


def test_ratios_beyond_the_models_are_meant_if_allowed(tmp_path, models):
    merged = average(tmp_path / "run", models, "alpha=-0.2", "tensors=released_ma", "allow=[extrapolation]")
    pre, post = of(models, "llama-pre"), of(models, "llama-post")
    for name, tensor in merged.items():
        expected = (1.2 * post[name].float() - 0.2 * pre[name].float()).bfloat16()
        assert torch.allclose(tensor.float(), expected.float(), rtol=2**-7, atol=1e-6)


def test_options_are_checked_before_there_are_models():
    check_options(AverageConfig(output_dir="x", pre="not/yet", post="not/there", pattern=[0.0, -0.1, -0.1]))
    with pytest.raises(UserError, match="outside 0 to 1"):
        check_options(AverageConfig(output_dir="x", pre="not/yet", post="not/there", alpha=2.0))
