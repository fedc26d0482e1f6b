"""The penalties equal their definitions, with the product of LoRA's factors formed or not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from safetensors.torch import save_file
from torch import nn

from reproalign.common.errors import UserError
from reproalign.common.models.tiny import tiny_model
from reproalign.dtm.train import regularizer
from reproalign.dtm.train.config import RegularizerConfig
from reproalign.dtm.train.regularizer import check_regularizer, find_changes, make_regularizer

TARGETS = ["gate_proj", "up_proj", "down_proj"]


def adapted(seed: int = 0):
    """A tiny model whose adapters are not at their start."""
    base = tiny_model(dtype=torch.float64)
    torch.manual_seed(seed)
    config = LoraConfig(r=4, lora_alpha=6, target_modules=TARGETS, task_type=TaskType.CAUSAL_LM)
    model = get_peft_model(base, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def deltas(model) -> dict[str, torch.Tensor]:
    """Name of the base's tensor -> s B A, formed."""
    return {
        change.name: change.scaling * (change.parameters[1] @ change.parameters[0]) for change in find_changes(model)
    }


def fisher_file(path, model, seed: int = 1) -> str:
    torch.manual_seed(seed)
    save_file({name: torch.rand(delta.shape) for name, delta in deltas(model).items()}, path)
    return str(path)


def gradients(value, model) -> list[torch.Tensor]:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return list(torch.autograd.grad(value, parameters))


def test_l2_is_the_norm_of_what_the_adapters_add():
    """R6 and its gradients, from explicit deltas."""
    model = adapted()
    penalty = make_regularizer(RegularizerConfig("l2", 0.7), model)
    explicit = 0.7 * sum(delta.square().sum() for delta in deltas(model).values())
    assert len(deltas(model)) == 6
    torch.testing.assert_close(penalty().double(), explicit, rtol=1e-5, atol=0)
    for found, expected in zip(gradients(penalty(), model), gradients(explicit, model), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_what_a_penalty_holds_follows_the_weights_to_their_device(tmp_path):
    """A Trainer moves the model after the penalty has read it."""
    plain = nn.Linear(3, 2)
    l2 = make_regularizer(RegularizerConfig("l2", 0.7), plain)
    plain.to("meta")
    l2.changes = [replace(change, parameters=(plain.get_parameter(change.name),)) for change in l2.changes]
    l2.place()
    assert {change.start.device.type for change in l2.changes} == {"meta"}
    model = adapted()
    file = fisher_file(tmp_path / "f.safetensors", model)
    ewc = make_regularizer(RegularizerConfig("ewc", 3.0, file), model)
    ewc.changes = [replace(one, parameters=tuple(p.to("meta") for p in one.parameters)) for one in ewc.changes]
    ewc.place()
    assert {weights.device.type for weights in ewc.fisher.values()} == {"meta"}


@pytest.mark.parametrize("block", [regularizer.BLOCK_BYTES, 200])
def test_ewc_weighs_every_entry_of_the_product(tmp_path, monkeypatch, block):
    """R7 and its gradients, from explicit deltas."""
    monkeypatch.setattr(regularizer, "BLOCK_BYTES", block)
    model = adapted()
    penalty = make_regularizer(RegularizerConfig("ewc", 3.0, fisher_file(tmp_path / "f.safetensors", model)), model)
    weights = penalty.fisher
    explicit = 1.5 * sum((weights[name] * delta.square()).sum() for name, delta in deltas(model).items())
    torch.testing.assert_close(penalty().double(), explicit, rtol=1e-5, atol=0)
    for found, expected in zip(gradients(penalty(), model), gradients(explicit, model), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_of_a_model_that_is_trained_itself_the_distance_to_its_start(tmp_path):
    model = tiny_model()
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    torch.manual_seed(3)
    save_file({name: torch.rand(value.shape) for name, value in start.items()}, tmp_path / "f.safetensors")
    l2 = make_regularizer(RegularizerConfig("l2", 2.0), model)
    ewc = make_regularizer(RegularizerConfig("ewc", 2.0, str(tmp_path / "f.safetensors")), model)
    assert l2() == ewc() == 0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    moved = {name: parameter - start[name] for name, parameter in model.named_parameters()}
    expected = 2 * sum(float(move.square().sum()) for move in moved.values())
    assert float(l2()) == pytest.approx(expected, rel=1e-4)
    weighted = sum(float((ewc.fisher[name] * move.square()).sum()) for name, move in moved.items())
    assert float(ewc()) == pytest.approx(weighted, rel=1e-4)


def test_fisher_information_of_another_model_is_refused(tmp_path):
    model = adapted()
    name = next(iter(deltas(model)))
    save_file({name: torch.rand(3, 3)}, tmp_path / "f.safetensors")
    config = RegularizerConfig("ewc", 1.0, str(tmp_path / "f.safetensors"))
    with pytest.raises(UserError, match=r"is of shape \(3, 3\), the weight of"):
        make_regularizer(config, model)
    save_file({"other.weight": torch.rand(3, 3)}, tmp_path / "f.safetensors")
    with pytest.raises(UserError, match="which is trained"):
        make_regularizer(config, model)


@pytest.mark.parametrize(
    ("config", "strategy", "message"),
    [
        (RegularizerConfig("l2"), "single", "needs regularizer.weight, its λ, which is not published"),
        (RegularizerConfig("ewc", 1.0), "single", "regularizer.name=ewc needs regularizer.fisher"),
        (RegularizerConfig("l2", 1.0, "f"), "single", "regularizer.fisher is for regularizer.name=ewc"),
        (RegularizerConfig("none", 1.0), "single", "regularizer.weight has no meaning"),
        (RegularizerConfig("l2", 1.0), "fsdp", "cuts into shards"),
    ],
)
def test_options_are_checked(config, strategy, message):
    with pytest.raises(UserError, match="regularizer") as error:
        check_regularizer(config, strategy)
    assert message in str(error.value)
