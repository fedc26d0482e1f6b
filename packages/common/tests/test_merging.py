"""``reproalign merge`` on full models: what is written, bit by bit, and what is left when something goes wrong."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from reproalign.common.cli import main
from reproalign.common.merging import methods, operands
from reproalign.common.merging.randomness import keep_mask
from reproalign.common.testing.checkpoints import ARCHITECTURES, save_random, tensors_of


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """Three models of each architecture, saved once: a base and two others."""
    root = tmp_path_factory.mktemp("models")
    return {
        f"{kind}{seed}": save_random(root / f"{kind}{seed}", kind, seed=seed)
        for kind in ARCHITECTURES
        for seed in range(3)
    }


def merge(folder: Path, *words: str) -> dict[str, Tensor]:
    assert main(["merge", *words, f"output_dir={folder}"]) == 0
    return tensors_of(folder / "model")


def words(models: dict[str, Path], kind: str, *seeds: int) -> str:
    return f"models=[{','.join(str(models[f'{kind}{seed}']) for seed in seeds)}]"


def float64(folder: Path) -> dict[str, Tensor]:
    return {name: tensor.double() for name, tensor in tensors_of(folder).items()}


def trimmed(vector: Tensor, density: float) -> Tensor:
    kept = round(density * vector.numel())
    limit = vector.abs().flatten().sort(descending=True).values[kept - 1] if kept else torch.inf
    return torch.where(vector.abs() >= limit, vector, 0)


def oracle(method: str, base: Tensor, first: Tensor, second: Tensor, name: str) -> Tensor:
    """The method in float64 on whole tensors, written independently of the engine."""
    taus = [first - base, second - base]
    if method == "linear":
        return 0.3 * first + 0.7 * second
    if method == "slerp":
        cosine = (first * second).sum() / (first.norm() * second.norm())
        angle = torch.arccos(cosine)
        return (torch.sin(0.6 * angle) * first + torch.sin(0.4 * angle) * second) / torch.sin(angle)
    if method == "task_arithmetic":
        return base + 0.4 * (taus[0] + taus[1])
    if method == "ties":
        taus = [trimmed(tau, 0.3) for tau in taus]
    else:
        masks = [keep_mask(5, name, model, 0, base.numel(), 0.3).view(base.shape) for model in (0, 1)]
        taus = [torch.where(mask, tau / 0.3, 0) for mask, tau in zip(masks, taus, strict=True)]
    if method == "dare_linear":
        return base + 0.4 * (taus[0] + taus[1])
    sign = (taus[0] + taus[1]).sign()
    agreeing = [torch.where(tau * sign > 0, tau, 0) for tau in taus]
    count = sum((tau != 0).double() for tau in agreeing)
    return base + (agreeing[0] + agreeing[1]) / count.clamp(min=1)


KEYS = {
    "linear": ["weights=[0.3,0.7]"],
    "slerp": ["t=0.4"],
    "task_arithmetic": ["scale=0.4"],
    "ties": ["density=0.3"],
    "dare_linear": ["scale=0.4", "density=0.3", "seed=5"],
    "dare_ties": ["density=0.3", "seed=5"],
}


@pytest.mark.parametrize(
    ("kind", "method"),
    [("llama", name) for name in KEYS] + [(kind, "ties") for kind in ARCHITECTURES if kind != "llama"],
)
def test_every_method_equals_the_float64_oracle_to_the_rounding_of_the_output(tmp_path, models, kind, method):
    base = [] if method in ("linear", "slerp") else [f"base={models[f'{kind}0']}"]
    common = [f"method={method}", words(models, kind, 1, 2), *base, *KEYS[method], "verify=headers"]
    exact = merge(tmp_path / "exact", *common, "accumulate=float64", "shard_size=5KB")
    assert len(list((tmp_path / "exact" / "model").glob("*.safetensors"))) > 3
    plain = merge(tmp_path / "plain", *common)
    sources = [float64(models[f"{kind}{seed}"]) for seed in range(3)]
    assert exact.keys() == plain.keys() == sources[0].keys()
    for name, tensor in exact.items():
        expected = oracle(method, *(source[name] for source in sources), name)
        size = sum(source[name].abs() for source in sources) + expected.abs()
        for found, precision in ((tensor, 1e-7 if method == "slerp" else 1e-14), (plain[name], 2**-20)):
            assert found.dtype == torch.bfloat16
            error = (found.double() - expected).abs()
            assert (error <= half_unit(expected) + precision * size).all(), name


def half_unit(values: Tensor) -> Tensor:
    """Half the distance of neighbouring bfloat16 numbers: the most that rounding may be off."""
    return torch.ldexp(torch.ones_like(values), torch.frexp(values).exponent - 9)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_arithmetic_in_the_dtype_of_the_output_rounds_every_step(tmp_path, models, dtype):
    keys = ("weights=[0.3,0.7]", "accumulate=output", f"dtype={dtype}", "verify=headers", "normalize=false")
    merged = merge(tmp_path / "run", words(models, "llama", 1, 2), *keys)
    first, second = (tensors_of(models[f"llama{seed}"]) for seed in (1, 2))
    for name, tensor in merged.items():
        left, right = (source[name].to(getattr(torch, dtype)) for source in (first, second))
        assert torch.equal(tensor, left * 0.3 + right * 0.7), name


def test_ratios_of_zero_and_one_return_the_inputs_bit_for_bit(tmp_path, models):
    for index, weights in enumerate(("[1,0]", "[0,1]")):
        merged = merge(tmp_path / str(index), words(models, "llama", 1, 2), f"weights={weights}")
        expected = tensors_of(models[f"llama{index + 1}"])
        assert merged.keys() == expected.keys()
        assert all(torch.equal(merged[name].view(torch.int16), expected[name].view(torch.int16)) for name in merged)


@pytest.mark.parametrize("method", ["linear", "ties", "dare_ties", "slerp"])
def test_sharding_threads_and_slices_change_no_bit(tmp_path, models, method, monkeypatch):
    for seed in range(3):
        save_random(tmp_path / f"s{seed}", "llama", seed=seed, shard="12KB")
    assert len(list((tmp_path / "s1").glob("*.safetensors"))) > 3
    keys = [f"method={method}", *KEYS[method], "verify=headers"]
    based = method in ("ties", "dare_ties")
    whole = [words(models, "llama", 1, 2), *([f"base={models['llama0']}"] if based else [])]
    cut = [f"models=[{tmp_path / 's1'},{tmp_path / 's2'}]", *([f"base={tmp_path / 's0'}"] if based else [])]
    merge(tmp_path / "one", *keys, *whole, "threads=1")
    if method != "slerp":  # whose sums are taken slice by slice
        monkeypatch.setattr(operands, "CHUNK", 100)
    merge(tmp_path / "two", *keys, *cut, "threads=4")
    first, second = (tmp_path / name / "model" / "model.safetensors" for name in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()


def test_ties_may_trim_the_whole_model_at_once(tmp_path, models):
    keys = [
        "method=ties",
        f"base={models['llama0']}",
        words(models, "llama", 1, 2),
        "density=0.2",
        "accumulate=float64",
    ]
    merged = merge(tmp_path / "merged", *keys, "trim_scope=model")
    sources = [float64(models[f"llama{seed}"]) for seed in range(3)]
    names = list(merged)
    flat = [torch.cat([source[name].flatten() for name in names]) for source in sources]
    taus = [trimmed(vector - flat[0], 0.2) for vector in flat[1:]]
    sign = (taus[0] + taus[1]).sign()
    agreeing = [torch.where(tau * sign > 0, tau, 0) for tau in taus]
    count = sum((tau != 0).double() for tau in agreeing)
    expected = (flat[0] + (agreeing[0] + agreeing[1]) / count.clamp(min=1)).to(torch.bfloat16)
    assert torch.equal(torch.cat([merged[name].flatten() for name in names]), expected)


def test_parts_have_weights_of_their_own_and_later_ones_win(tmp_path, models):
    plan = {
        "models": [str(models["llama1"]), str(models["llama2"])],
        "weights": [0.5, 0.5],
        "parts": {"layers.0-1": [1, 0], "layers.1.mlp": [0, 1], "*.o_proj.weight": [0, 1], "head": [1, 0]},
    }
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan))
    merged = merge(tmp_path / "merged", str(tmp_path / "plan.yaml"))
    first, second = tensors_of(models["llama1"]), tensors_of(models["llama2"])
    for name, expected in {
        "lm_head.weight": first,
        "model.layers.0.mlp.up_proj.weight": first,
        "model.layers.1.mlp.up_proj.weight": second,
        "model.layers.1.input_layernorm.weight": first,
        "model.layers.0.self_attn.q_proj.weight": first,
        "model.layers.3.self_attn.o_proj.weight": second,
    }.items():
        assert torch.equal(merged[name], expected[name]), name
    half = (first["model.norm.weight"].float() + second["model.norm.weight"].float()) / 2
    assert torch.equal(merged["model.norm.weight"], half.bfloat16())


def test_fisher_and_regmean_read_statistics_beside_the_models(tmp_path, models):
    first, second = float64(models["llama1"]), float64(models["llama2"])
    generator = torch.Generator().manual_seed(0)
    information, grams = [], []
    for index in range(2):
        save_file({name: torch.rand(t.shape, generator=generator) for name, t in first.items()}, tmp_path / f"f{index}")
        samples = torch.randn(40, 16, generator=generator)
        save_file({"model.layers.0.self_attn.q_proj.weight": samples.T @ samples}, tmp_path / f"g{index}")
        information.append({name: t.double() for name, t in load(tmp_path / f"f{index}").items()})
        grams.append(load(tmp_path / f"g{index}"))
    common = [words(models, "llama", 1, 2), "accumulate=float64", "dtype=float32"]
    merged = merge(tmp_path / "fisher", "method=fisher", *common, f"statistics=[{tmp_path / 'f0'},{tmp_path / 'f1'}]")
    for name, tensor in merged.items():
        f, g = information[0][name], information[1][name]
        assert torch.allclose(tensor.double(), (f * first[name] + g * second[name]) / (f + g), rtol=1e-6)
    merged = merge(tmp_path / "regmean", "method=regmean", *common, f"statistics=[{tmp_path / 'g0'},{tmp_path / 'g1'}]")
    (name,) = grams[0]
    pair = [first[name], second[name]]
    expected = methods.regmean(pair, [gram[name].double() for gram in grams], [0.5, 0.5])
    assert torch.allclose(merged[name].double(), expected, rtol=1e-5)
    assert torch.allclose(
        merged["model.norm.weight"].double(), (first["model.norm.weight"] + second["model.norm.weight"]) / 2
    )


@pytest.mark.parametrize("method", ["fisher", "regmean"])
def test_weighted_averages_of_one_model_alone_are_that_model_bit_for_bit(tmp_path, models, method):
    first = tensors_of(models["llama1"])
    for index in range(2):
        samples = torch.randn(40, 16, generator=torch.Generator().manual_seed(index))
        gram = {"model.layers.0.self_attn.q_proj.weight": samples.T @ samples}
        information = {name: torch.rand(tensor.shape) for name, tensor in first.items()}
        save_file(information if method == "fisher" else gram, tmp_path / f"{index}")
    statistics = f"statistics=[{tmp_path / '0'},{tmp_path / '1'}]"
    merged = merge(tmp_path / "run", f"method={method}", words(models, "llama", 1, 2), statistics, "weights=[2,0]")
    assert all(torch.equal(merged[name], tensor) for name, tensor in first.items())


def load(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def test_the_result_is_a_model_with_everything_beside_it(tmp_path, models):
    merge(tmp_path / "run", words(models, "gemma2", 1, 2), "dtype=float32")
    folder = tmp_path / "run" / "model"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert model.dtype == torch.float32
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    for name in ("tokenizer.json", "chat_template.jinja", "generation_config.json"):
        assert (folder / name).read_bytes() == (models["gemma21"] / name).read_bytes()
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["verified"] == "loaded"
    prints = record["fingerprints"]["weights"]
    card = (folder / "README.md").read_text()
    for seed in (1, 2):
        (digest,) = prints[str(models[f"gemma2{seed}"])]["files"].values()
        assert digest in card
    assert prints["model"]["files"].keys() == {"model.safetensors"}
    assert "method: linear" in card


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(tmp_path, models, capsys):
    code = main(
        [
            "merge",
            words(models, "llama", 1, 2),
            "parts={layers.0-1:[1,0]}",
            f"output_dir={tmp_path / 'run'}",
            "--dry-run",
        ]
    )
    said = capsys.readouterr().out
    assert code == 0
    assert not (tmp_path / "run").exists()
    assert "layers.0-1.mlp" in said
    assert "layers.2-3.mlp" in said
    assert "writes" in said


@pytest.mark.slow
def test_killed_in_the_middle_there_is_no_half_model_and_the_same_command_finishes_it(tmp_path, models):
    command = ["merge", words(models, "llama", 1, 2), f"output_dir={tmp_path / 'run'}", "shard_size=2KB"]
    process = subprocess.Popen([sys.executable, "-m", "reproalign.common.cli", *command], stderr=subprocess.DEVNULL)
    while not (tmp_path / "run" / ".partial" / "progress.json").exists():
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "run" / "model").exists()
    partial = tmp_path / "run" / ".partial"
    kept = json.loads((partial / "progress.json").read_text())["files"]
    stamp = {name: (partial / name).stat().st_mtime_ns for name in kept}
    # One of the finished files is harmed meanwhile: it is written again.
    harmed = sorted(kept)[0]
    content = bytearray((partial / harmed).read_bytes())
    content[-1] ^= 1
    (partial / harmed).write_bytes(content)

    assert main(command) == 0
    model = tmp_path / "run" / "model"
    unharmed = [name for name in kept if name != harmed]
    assert all((model / name).stat().st_mtime_ns == stamp[name] for name in unharmed)
    assert not partial.exists()
    merge(tmp_path / "whole", words(models, "llama", 1, 2), "shard_size=2KB")
    for path in (tmp_path / "whole" / "model").glob("model*"):
        assert (model / path.name).read_bytes() == path.read_bytes()


def test_killed_between_the_model_and_its_record_the_same_command_finishes_it(tmp_path, models, monkeypatch):
    command = ["merge", words(models, "llama", 1, 2), f"output_dir={tmp_path / 'run'}"]

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("reproalign.common.records.run.Run.made_weights", killed)
        assert main(command) == 130
    first = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    assert main(command) == 0
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == first


@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(tmp_path):
    """Peak resident memory above the start stays far below the 96 MB that one model of the larger pair has."""
    grown = {}
    for count in (4, 48):
        for seed in range(2):
            folder = save_random(tmp_path / f"m{count}-{seed}", seed=seed, tokenizer=False)
            config = json.loads((folder / "config.json").read_text())
            config["num_hidden_layers"] = 0
            for path in folder.glob("*.safetensors"):
                path.unlink()
            save_file(
                {f"model.layers.{i}.w": torch.zeros(1024, 1024, dtype=torch.bfloat16) for i in range(count)},
                folder / "model.safetensors",
            )
        probe = [
            sys.executable,
            "-c",
            PROBE,
            *(str(tmp_path / f"m{count}-{seed}") for seed in range(2)),
            str(tmp_path / f"o{count}"),
        ]
        grown[count] = int(subprocess.run(probe, capture_output=True, text=True, check=True).stdout)
    assert grown[48] - grown[4] < 16 * 2**20
    assert grown[48] < 64 * 2**20


PROBE = """
import resource, sys
from pathlib import Path
import torch
from reproalign.common.merging.checkpoint import Checkpoint
from reproalign.common.merging.rules import Linear
from reproalign.common.merging.operands import Operands
from reproalign.common.merging.stream import Job, threads, write_model
from reproalign.common.merging.writer import OutputTensor
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
sources = [Checkpoint(name, Path(name)) for name in sys.argv[1:3]]
jobs = {}
for name, info in sources[0].tensors.items():
    entry = Operands(name, tuple((source, name) for source in sources), info.size, torch.float32)
    jobs[name] = Job(OutputTensor(info.dtype, info.shape), entry, Linear((0.5, 0.5)))
folder = Path(sys.argv[3])
folder.mkdir()
before = peak()
with threads(2) as workers:
    write_model(folder, jobs, identity="", shard_bytes=10**9, workers=workers, advance=lambda count: None)
print(peak() - before)
"""
