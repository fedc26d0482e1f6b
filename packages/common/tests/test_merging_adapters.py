"""Adapters: folded into weights, and merged as adapters in the space that was asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from reproalign.common.cli import main
from reproalign.common.merging.adapters import Factors
from reproalign.common.merging.lora_algebra import average_factors, product_norm, recompress, stack_deltas
from reproalign.common.models.tiny_tokenizers import tiny_tokenizer
from reproalign.common.testing import refusal
from reproalign.common.testing.checkpoints import ARCHITECTURES, save_random, tensors_of
from reproalign.common.testing.checkpoints import save_random_adapter as save_adapter

PLAIN = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}
KINDS = {
    "plain": PLAIN,
    "rslora": PLAIN | {"use_rslora": True},
    "dora": PLAIN | {"use_dora": True},
    "patterns": PLAIN | {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 3}},
    "head": PLAIN | {"modules_to_save": ["lm_head"]},
    "embedding": PLAIN | {"target_modules": ["q_proj", "embed_tokens"]},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_random(tmp_path_factory.mktemp("base") / "model", seed=0, dtype=torch.float32)


def merge(folder: Path, *words: object) -> int:
    return main(["merge", *map(str, words), f"output_dir={folder}"])


def deltas(folder: Path, base: Path) -> dict[str, Tensor]:
    """What an adapter adds to each weight, as PEFT itself applies it, in float64."""
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    merged = PeftModel.from_pretrained(plain, folder).to(torch.float64).merge_and_unload()
    return {name: tensor - before[name] for name, tensor in merged.state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_folding_an_adapter_gives_pefts_model_rounded_once(tmp_path, base, kind):
    adapter = save_adapter(tmp_path / "adapter", base, 1, **KINDS[kind])
    assert merge(tmp_path / "run", f"models=[{adapter}]", "output=model", "accumulate=float64") == 0
    merged, before, change = tensors_of(tmp_path / "run" / "model"), tensors_of(base), deltas(adapter, base)
    changed = 0
    for name, tensor in merged.items():
        assert torch.allclose(tensor.double(), before[name].double() + change[name], rtol=3e-7, atol=3e-7), name
        changed += not torch.equal(tensor, before[name])
    assert changed >= 5


def test_folding_into_gpt2s_transposed_layers(tmp_path):
    base = save_random(tmp_path / "base", "gpt2", seed=0, dtype=torch.float32)
    adapter = save_adapter(tmp_path / "adapter", base, 1, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    assert merge(tmp_path / "run", f"models=[{adapter}]", "output=model") == 0
    merged, before, change = tensors_of(tmp_path / "run" / "model"), tensors_of(base), deltas(adapter, base)
    for name, tensor in merged.items():
        assert torch.allclose(tensor.double(), before[name].double() + change[name], atol=1e-5), name


def test_a_hundred_merge_and_unmerge_cycles_do_not_drift(tmp_path, base):
    adapter = save_adapter(tmp_path / "adapter", base, 1)
    tensors = load_file(adapter / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    add = Factors(tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"], 2.0, None, False)
    remove = Factors(add.a, -add.b, 2.0, None, False)
    for dtype, bound in ((torch.float32, 1e-6), (torch.bfloat16, 2**-6)):
        start = tensors_of(base)["model.layers.0.self_attn.q_proj.weight"].to(dtype)
        weight, errors = start, []
        for _ in range(100):
            merged = add.fold(weight.float(), 0).to(dtype)
            weight = remove.fold(merged.float(), 0).to(dtype)
            errors.append(float((weight.double() - start.double()).abs().max()))
        assert errors[-1] <= errors[0] + 1e-6  # what the first rounding took is all that is lost
        assert errors[-1] < bound


def test_one_adapter_or_copies_of_it_are_that_adapter_bit_for_bit(tmp_path, base):
    adapter = save_adapter(tmp_path / "adapter", base, 1, use_rslora=True)
    expected = load_file(adapter / "adapter_model.safetensors")
    for count in (1, 3):
        copies = [shutil.copytree(adapter, tmp_path / f"{count}-{index}") for index in range(count)]
        for space in ("factor", "delta"):
            folder = tmp_path / f"run-{count}-{space}"
            assert merge(folder, f"models=[{','.join(map(str, copies))}]", f"space={space}") == 0
            found = load_file(folder / "adapter" / "adapter_model.safetensors")
            assert found.keys() == expected.keys()
            if space == "delta" or count == 1:
                assert all(torch.equal(found[name], expected[name]) for name in found)
            else:  # three times a third
                assert all(torch.allclose(found[name], expected[name], rtol=3e-7, atol=0) for name in found)
            record = json.loads((folder / "run.json").read_text())
            assert record["metrics"]["factor_delta_gap"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", ["plain", "rslora", "patterns"])
def test_the_delta_space_adds_what_the_adapters_add(tmp_path, base, kind):
    adapters = [save_adapter(tmp_path / str(seed), base, seed, **KINDS[kind]) for seed in (1, 2)]
    assert merge(tmp_path / "run", f"models=[{adapters[0]},{adapters[1]}]", "weights=[0.3,0.7]") == 0
    first, second = (deltas(adapter, base) for adapter in adapters)
    merged = deltas(tmp_path / "run" / "adapter", base)
    for name, delta in merged.items():
        assert torch.allclose(delta, 0.3 * first[name] + 0.7 * second[name], atol=1e-5), name


def test_adapters_of_different_layers_or_modules_add_up(tmp_path, base):
    kinds = ({"layers_to_transform": [0]}, {"layers_to_transform": [2]}, {"exclude_modules": ["down_proj"]})
    adapters = [save_adapter(tmp_path / str(seed), base, seed, **kind) for seed, kind in enumerate(kinds)]
    models = ",".join(map(str, adapters))
    assert merge(tmp_path / "run", f"models=[{models}]", "weights=[1,2,3]", "normalize=false") == 0
    parts = [deltas(adapter, base) for adapter in adapters]
    for name, delta in deltas(tmp_path / "run" / "adapter", base).items():
        expected = sum(weight * part[name] for weight, part in zip((1, 2, 3), parts, strict=True))
        assert torch.allclose(delta, expected, atol=1e-5), name


def test_an_adapters_own_template_and_another_base_are_reported(tmp_path, base, capsys):
    adapter = save_adapter(tmp_path / "adapter", base, 1)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0].content }}"
    tokenizer.save_pretrained(adapter)
    other = shutil.copytree(base, tmp_path / "other")
    words = [f"models=[{adapter}]", "output=model", f"base={other}"]
    line = ["merge", *words, f"output_dir={tmp_path / 'run'}"]
    message = refusal("reproalign", main, line, capsys, untouched=tmp_path)
    assert f"the chat templates of '{other}', '{adapter}' differ" in message
    assert merge(tmp_path / "taken", *words, f"files_from={adapter}", "allow=[chat_template]") == 0
    assert f"'{adapter}' names the base {base} and is folded into '{other}'" in capsys.readouterr().err
    made = AutoTokenizer.from_pretrained(tmp_path / "taken" / "model")
    assert made.chat_template == tokenizer.chat_template


def test_the_factor_space_averages_a_and_b_as_the_release_does_and_says_how_far_that_is(tmp_path, base, capsys):
    adapters = [save_adapter(tmp_path / str(seed), base, seed, shared=True) for seed in (1, 2)]
    assert merge(tmp_path / "run", f"models=[{adapters[0]},{adapters[1]}]", "space=factor") == 0
    found = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    parts = [load_file(adapter / "adapter_model.safetensors") for adapter in adapters]
    for name, tensor in found.items():
        assert torch.allclose(tensor, (parts[0][name] + parts[1][name]) / 2)
    factor = deltas(tmp_path / "run" / "adapter", base)
    exact = {
        name: (a + b) / 2
        for (name, a), b in zip(deltas(adapters[0], base).items(), deltas(adapters[1], base).values(), strict=True)
    }
    gap = sum(float((factor[n] - exact[n]).pow(2).sum()) for n in exact) / sum(
        float(exact[n].pow(2).sum()) for n in exact
    )
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["metrics"]["factor_delta_gap"] == pytest.approx(gap**0.5, rel=1e-3, abs=1e-6)
    assert "factor-delta gap" in capsys.readouterr().out


def test_task_vectors_of_adapters_merge_into_a_model(tmp_path, base):
    adapters = [save_adapter(tmp_path / str(seed), base, seed) for seed in (1, 2)]
    words = [f"models=[{adapters[0]},{adapters[1]}]", "method=ties", "density=0.5", "accumulate=float64"]
    assert merge(tmp_path / "run", *words) == 0
    full = []
    for index, adapter in enumerate(adapters):
        assert merge(tmp_path / f"full{index}", f"models=[{adapter}]", "output=model", "accumulate=float64") == 0
        full.append(tmp_path / f"full{index}" / "model")
    assert merge(tmp_path / "twice", f"models=[{full[0]},{full[1]}]", f"base={base}", *words[1:]) == 0
    once, twice = tensors_of(tmp_path / "run" / "model"), tensors_of(tmp_path / "twice" / "model")
    for name, tensor in once.items():
        # Rounding the folded models to float32 first may move an entry over the threshold.
        close = torch.isclose(tensor, twice[name], atol=1e-5)
        assert close.float().mean() > 0.99, name


def factors(generator, rank, rows=9, columns=7):
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    return Factors(draw(rank, columns), draw(rows, rank), 0.5, None, False)


@given(st.integers(0, 1000), st.integers(1, 6))
def test_recompression_is_the_best_approximation_of_its_rank(seed, rank):
    generator = torch.Generator().manual_seed(seed)
    stacked = stack_deltas([factors(generator, 3), factors(generator, 3)], [0.4, 0.6], rank=None, dtype=torch.float64)
    small = recompress(stacked, rank)
    exact = stacked.b @ stacked.a
    values = torch.linalg.svdvals(exact)
    assert small.a.shape[0] == rank
    assert float((exact - small.b @ small.a).norm()) == pytest.approx(float(values[rank:].norm()), abs=1e-9)
    assert product_norm([stacked.b], [stacked.a]) == pytest.approx(float(exact.norm()))


def test_a_rank_recompresses_the_sum(tmp_path, base):
    adapters = [save_adapter(tmp_path / str(seed), base, seed) for seed in (1, 2)]
    assert merge(tmp_path / "run", f"models=[{adapters[0]},{adapters[1]}]", "space=delta", "rank=4") == 0
    config = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert config["r"] == 4
    assert 0.01 < record["metrics"]["error"] < 1


def edited(adapter: Path, folder: Path, change) -> Path:
    shutil.copytree(adapter, folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def test_adapters_that_do_not_fit_are_refused_by_name(tmp_path, base, capsys):
    good = save_adapter(tmp_path / "good", base, 1)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"

    def refused(*models: Path, words: tuple[str, ...] = ("output=model",)) -> str:
        line = ["merge", f"models=[{','.join(map(str, models))}]", f"output_dir={tmp_path / 'run'}", *words]
        return refusal("reproalign", main, line, capsys, untouched=tmp_path)

    def rename(tensors):
        for part in ("A", "B"):
            key = name.replace("lora_A", f"lora_{part}")
            tensors[key.replace("layers.0", "layers.9")] = tensors.pop(key)

    assert "stores no tensor 'model.layers.9.self_attn.q_proj.weight'" in refused(
        edited(good, tmp_path / "name", rename)
    )
    unknown = edited(
        good, tmp_path / "unknown", lambda t: t.update({"base_model.model.x.lora_C.weight": torch.ones(1)})
    )
    assert "lora_C.weight' is not understood" in refused(unknown)
    zero = edited(good, tmp_path / "zero", lambda t: [v.zero_() for k, v in t.items() if "lora_B" in k])
    assert "changes nothing" in refused(zero)
    half = edited(good, tmp_path / "half", lambda t: t.pop(name))
    assert "no matching matrices A" in refused(half)
    other = save_adapter(tmp_path / "other", base, 2, r=2)
    assert "differ in r" in refused(good, other, words=("space=factor",))
    dora = save_adapter(tmp_path / "dora", base, 2, use_dora=True)
    assert "dtype has no meaning where adapters become" in refused(good, words=("dtype=float16",))
    assert "DoRA" in refused(good, dora, words=("space=delta",))
    wrong = save_random(tmp_path / "wrong", seed=0, hidden_size=32)
    assert "in the model and" in refused(good, words=("output=model", f"base={wrong}"))


def test_factors_of_different_starts_are_refused(tmp_path, base, capsys):
    adapters = [save_adapter(tmp_path / str(seed), base, seed) for seed in (1, 2)]
    for adapter, start in zip(adapters, "ab", strict=True):
        (adapter / "adapter_manifest.json").write_text(json.dumps({"initial_a_sha256": start}))
    words = ["merge", f"models=[{adapters[0]},{adapters[1]}]", "space=factor", f"output_dir={tmp_path / 'run'}"]
    assert "began at different A" in refusal("reproalign", main, words, capsys, untouched=tmp_path)


TARGETS = {
    "llama": ["q_proj", "down_proj"],
    "gemma2": ["v_proj", "gate_proj"],
    "gpt2": ["c_attn", "c_fc"],
    "gpt_neox": ["query_key_value", "dense_h_to_4h"],
    "qwen2": ["k_proj", "up_proj"],
}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_delta_average_of_adapters_is_the_average_of_the_full_checkpoints(tmp_path, kind):
    """DTM R3: averaging low-rank deltas, and averaging models that they were merged into."""
    base = save_random(tmp_path / "base", kind, seed=0, dtype=torch.float64)
    more = {"target_modules": TARGETS[kind], "fan_in_fan_out": kind == "gpt2"}
    adapters = [save_adapter(tmp_path / str(seed), base, seed, **more) for seed in (1, 2)]
    words = ("weights=[1,3]", "accumulate=float64", "output=model")
    assert merge(tmp_path / "delta", f"models=[{adapters[0]},{adapters[1]}]", *words) == 0
    full = []
    for index, adapter in enumerate(adapters):
        assert merge(tmp_path / f"full{index}", f"models=[{adapter}]", *words[1:]) == 0
        full.append(tmp_path / f"full{index}" / "model")
    assert merge(tmp_path / "average", f"models=[{full[0]},{full[1]}]", *words[:2]) == 0
    expected = tensors_of(tmp_path / "average" / "model")
    for name, tensor in tensors_of(tmp_path / "delta" / "model").items():
        assert torch.allclose(tensor, expected[name], rtol=1e-12, atol=1e-12), name


def test_factor_and_delta_average_are_one_where_all_adapters_have_the_same_a(tmp_path, base):
    adapters = [save_adapter(tmp_path / str(seed), base, seed, shared=True) for seed in (1, 2, 3)]
    models = f"models=[{','.join(map(str, adapters))}]"
    assert merge(tmp_path / "factor", models, "space=factor") == 0
    assert merge(tmp_path / "delta", models, "space=delta") == 0
    record = json.loads((tmp_path / "factor" / "run.json").read_text())
    assert record["metrics"]["factor_delta_gap"] < 1e-6
    assert merge(tmp_path / "model", models, "output=model") == 0
    (note,) = json.loads((tmp_path / "model" / "run.json").read_text())["notes"]
    assert note.startswith("space: delta")
    assert float(note.rpartition("factor-delta gap of their average ")[2]) < 1e-6
    found = [deltas(tmp_path / space / "adapter", base) for space in ("factor", "delta")]
    for name, delta in found[0].items():
        assert torch.allclose(delta, found[1][name], atol=1e-6), name


@given(st.integers(0, 1000), st.lists(st.floats(0.01, 1), min_size=2, max_size=5))
def test_delta_minus_factor_average_is_the_weighted_covariance_of_b_and_a(seed, raw):
    """DTM R5, on random factors."""
    generator = torch.Generator().manual_seed(seed)
    parts = [factors(generator, 3) for _ in raw]
    weights = [weight / sum(raw) for weight in raw]
    factor = average_factors(parts, weights, torch.float64)
    delta = stack_deltas(parts, weights, rank=None, dtype=torch.float64)
    covariance = sum(w * (part.b - factor.b) @ (part.a - factor.a) for w, part in zip(weights, parts, strict=True))
    assert torch.allclose(delta.b @ delta.a - factor.b @ factor.a, covariance, atol=1e-12)


def test_peft_agrees_where_it_computes_the_same(tmp_path, base):
    """Its ``linear`` takes square roots of weights, so that squares give the factor average; ``cat`` stacks."""
    adapters = [save_adapter(tmp_path / str(seed), base, seed) for seed in (1, 2)]
    weights = (0.3, 0.7)
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64), adapters[0], adapter_name="0"
    )
    model.load_adapter(str(adapters[1]), "1")
    model = model.double()
    model.add_weighted_adapter(["0", "1"], [w * w for w in weights], "factor", combination_type="linear")
    model.add_weighted_adapter(["0", "1"], list(weights), "delta", combination_type="cat")
    for space in ("factor", "delta"):
        folder = tmp_path / space
        assert merge(folder, f"models=[{adapters[0]},{adapters[1]}]", "weights=[0.3,0.7]", f"space={space}") == 0
        for name, delta in deltas(folder / "adapter", base).items():
            module = model.get_base_model().get_submodule(name.removesuffix(".weight"))
            if hasattr(module, "lora_A"):
                assert torch.allclose(module.get_delta_weight(space), delta, atol=1e-5), name


def test_task_arithmetic_of_adapters_is_an_adapter_again(tmp_path, base, capsys):
    adapters = [save_adapter(tmp_path / str(seed), base, seed) for seed in (1, 2)]
    words = [f"models=[{adapters[0]},{adapters[1]}]", "method=task_arithmetic", "scale=0.4", "output=adapter"]
    assert merge(tmp_path / "run", *words) == 0
    parts = [deltas(adapter, base) for adapter in adapters]
    for name, delta in deltas(tmp_path / "run" / "adapter", base).items():
        assert torch.allclose(delta, 0.4 * (parts[0][name] + parts[1][name]), atol=1e-5), name
    line = ["merge", *words, "space=factor", f"output_dir={tmp_path / 'no'}"]
    assert "set space=delta" in refusal("reproalign", main, line, capsys, untouched=tmp_path)
