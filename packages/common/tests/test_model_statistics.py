"""Statistics of a model: squared gradients row by row, inputs of its layers, and what merging makes of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from reproalign.common.cli import main
from reproalign.common.errors import UserError
from reproalign.common.merging.statistics import open_statistics
from reproalign.common.models.tiny import tiny_model
from reproalign.common.testing import refusal
from reproalign.common.testing.checkpoints import save_random, tensors_of
from reproalign.common.training.model_statistics import Request, choose_tensors, measurable, write_model_statistics
from reproalign.common.training.row_statistics import fisher_information, gram_matrices

ROWS = [
    {"input_ids": [5, 9, 77, 31, 200], "labels": [-100, -100, 77, 31, 200]},
    {"input_ids": [8, 13, 99], "labels": [-100, 13, -100]},
    {"input_ids": [40, 41, 42, 43], "labels": [-100, 41, 42, 43]},
]
NAMES = ["model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight", "lm_head.weight"]


def log_likelihood(model, row, labels):
    logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1].log_softmax(-1)
    places = torch.tensor(row["labels"][1:]) != -100
    tokens = torch.tensor(row["input_ids"][1:]) if labels == "data" else logits.argmax(-1)
    return logits.gather(1, tokens[:, None]).squeeze(1)[places].sum()


@pytest.mark.parametrize("labels", ["data", "model"])
def test_fisher_is_the_mean_over_rows_of_squared_gradients(labels):
    model = tiny_model("llama")
    parameters = [dict(model.named_parameters())[name] for name in NAMES]
    rows = [torch.autograd.grad(log_likelihood(model, row, labels), parameters) for row in ROWS]
    expected = [sum(gradients[place] ** 2 for gradients in rows) / len(rows) for place in range(len(NAMES))]
    model.requires_grad_(False)
    found, tokens = fisher_information(model, ROWS, NAMES, labels=labels)
    assert tokens == 7
    for name, value in zip(NAMES, expected, strict=True):
        assert torch.allclose(found[name], value, rtol=1e-3, atol=1e-7), name
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_grams_are_the_mean_outer_products_of_the_inputs(tmp_path, kind):
    model = AutoModelForCausalLM.from_pretrained(save_random(tmp_path / kind, kind, seed=0, dtype=torch.float32))
    name = {"llama": "model.layers.1.mlp.down_proj", "gpt2": "transformer.h.1.mlp.c_proj"}[kind]
    seen = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][0]))
    with torch.no_grad():
        for row in ROWS:
            model(input_ids=torch.tensor([row["input_ids"]]))
    hook.remove()
    x = torch.cat(seen)
    found, tokens = gram_matrices(model, ROWS, [f"{name}.weight"])
    assert tokens == len(x) == 12
    assert torch.allclose(found[f"{name}.weight"], x.mT @ x / len(x), rtol=1e-4, atol=1e-3)


def test_a_measurement_in_parts_is_the_same_and_goes_on_where_it_stopped(tmp_path):
    model = tiny_model("llama")
    whole = write_model_statistics(tmp_path / "whole", model, ROWS, NAMES, Request("fisher", "data", 10**9), named="m")
    small = Request("fisher", "data", 4 * 512 * 32)
    parts = write_model_statistics(tmp_path / "parts", model, ROWS, NAMES, small, named="m")
    assert (whole["passes"], parts["passes"]) == (1, 3)
    expected, found = tensors_of(tmp_path / "whole"), tensors_of(tmp_path / "parts")
    assert {name: tensor.tolist() for name, tensor in found.items()} == {n: t.tolist() for n, t in expected.items()}

    class Interrupted(list):
        reads = 0

        def __iter__(self):
            Interrupted.reads += 1
            if Interrupted.reads == 3:
                raise KeyboardInterrupt
            return super().__iter__()

    with pytest.raises(KeyboardInterrupt):
        write_model_statistics(tmp_path / "stopped", model, Interrupted(ROWS), NAMES, small, named="m")
    assert not (tmp_path / "stopped" / "statistics.json").exists()
    left = {path: path.stat().st_mtime_ns for path in (tmp_path / "stopped").glob("*.safetensors")}
    write_model_statistics(tmp_path / "stopped", model, ROWS, NAMES, small, named="m")
    assert len(left) == 2
    assert all(path.stat().st_mtime_ns == time for path, time in left.items())
    facts = json.loads((tmp_path / "stopped" / "statistics.json").read_text())
    assert facts == {"format": 1, "kind": "fisher", "rows": 3, "tokens": 7, "labels": "data", "model": "m"}

    Interrupted.reads = 1  # another measurement in the same folder: what says that it is whole goes first
    with pytest.raises(KeyboardInterrupt):
        write_model_statistics(tmp_path / "stopped", model, Interrupted(ROWS[:2]), NAMES, small, named="m")
    assert not (tmp_path / "stopped" / "statistics.json").exists()


def test_tensors_are_named_by_patterns():
    known = measurable(tiny_model("llama"), "gram")
    assert len(choose_tensors(known, ["*.mlp.*"])) == 6
    assert "lm_head.weight" not in known
    with pytest.raises(UserError, match=r"'\*.moe.\*' matches no tensor"):
        choose_tensors(known, ["*.moe.*"])


def toy(folder: Path, weight: torch.Tensor, base: Path) -> Path:
    """The base with another matrix in one layer."""
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.get_submodule("model.layers.0.mlp.up_proj").weight.copy_(weight)
    model.save_pretrained(folder)
    return folder


def test_regmean_recovers_the_least_squares_solution_of_all_inputs(tmp_path):
    """Σ_j ‖W x - W_j x‖² over the inputs of both models is least at the merged W (arXiv 2212.09849, Eq. 1)."""
    base = save_random(tmp_path / "base", seed=0, dtype=torch.float64, tokenizer=False)
    generator = torch.Generator().manual_seed(1)
    name, words = "model.layers.0.mlp.up_proj.weight", []
    inputs = [torch.randn(40, 16, generator=generator, dtype=torch.float64) for _ in range(2)]
    weights = [torch.randn(24, 16, generator=generator, dtype=torch.float64) for _ in range(2)]
    for index in range(2):
        model = toy(tmp_path / f"model{index}", weights[index], base)
        save_file({name: (inputs[index].mT @ inputs[index] / 40).contiguous()}, tmp_path / f"{index}.safetensors")
        words.append((model, tmp_path / f"{index}.safetensors"))
    lists = [f"[{','.join(str(pair[place]) for pair in words)}]" for place in (0, 1)]
    line = ["merge", "method=regmean", f"models={lists[0]}", f"statistics={lists[1]}", "off_diagonal=1"]
    assert main([*line, "accumulate=float64", f"output_dir={tmp_path / 'run'}"]) == 0
    targets = torch.cat([x @ weight.mT for x, weight in zip(inputs, weights, strict=True)])
    expected = torch.linalg.lstsq(torch.cat(inputs), targets).solution.mT
    assert torch.allclose(tensors_of(tmp_path / "run" / "model")[name], expected, atol=1e-9)


def test_fisher_merging_needs_no_statistics_of_tensors_in_which_models_agree(tmp_path, capsys):
    base = save_random(tmp_path / "base", seed=0, dtype=torch.float64, tokenizer=False)
    name, other = "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.gate_proj.weight"
    models = [toy(tmp_path / f"model{j}", torch.full((24, 16), float(j)), base) for j in (1, 2)]
    files = []
    for value in (1.0, 3.0):
        files.append(tmp_path / f"{value}.safetensors")
        save_file({name: torch.full((24, 16), value)}, files[-1])
    line = ["merge", "method=fisher", f"models=[{models[0]},{models[1]}]"]
    words = [*line, f"statistics=[{files[0]},{files[1]}]"]
    assert main([*words, f"output_dir={tmp_path / 'run'}"]) == 0
    assert torch.allclose(tensors_of(tmp_path / "run" / "model")[name], torch.tensor(1.75, dtype=torch.float64))
    for file in files:
        save_file({other: load_file(file)[name]}, file)
    refused = refusal("reproalign", main, [*words, f"output_dir={tmp_path / 'no'}"], capsys, untouched=tmp_path)
    assert f"tensor '{name}' (float64) differs between the models and no statistics hold its Fisher" in refused


def test_statistics_of_another_kind_are_refused(tmp_path):
    model = tiny_model("llama")
    write_model_statistics(
        tmp_path / "gram", model, ROWS, ["model.layers.0.mlp.up_proj.weight"], Request("gram", "data", 10**9), named="m"
    )
    with pytest.raises(UserError, match="holds statistics of kind gram, and fisher is needed"):
        open_statistics(str(tmp_path / "gram"), "fisher")
    with pytest.raises(UserError, match="no such file or folder"):
        open_statistics(str(tmp_path / "nothing"), "fisher")
