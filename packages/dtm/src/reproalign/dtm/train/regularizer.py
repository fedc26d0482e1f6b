r"""Penalties that hold a model near its base: the L2 norm of what training adds, and EWC's Fisher-weighted one.

With Δθ = θ - θ_0 of all trained parameters

    l2     λ ‖Δθ‖²                                                                                  (R6)
    ewc    λ/2 Σ_i F_i Δθ_i²        (Kirkpatrick et al., 2017, Eq. 3; F the diagonal Fisher information at θ_0)   (R7)

For a LoRA matrix Δθ = s B A, and what is trained is A and B. Its norm needs products of r x r alone,

    ‖s B A‖² = s² tr((BᵀB)(A Aᵀ)),

while EWC needs every entry: B A is formed a block of rows at a time, and the gradients

    G = F ∘ (s B A),   d/dB = λ s G Aᵀ,   d/dA = λ s Bᵀ G

are computed with the value, so that no matrix of the weight's size but F is kept. λ is not published for either.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from jaxtyping import Float
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from reproalign.common.errors import UserError
from reproalign.common.merging.adapters import PREFIX
from reproalign.common.merging.statistics import open_statistics
from reproalign.dtm.train.config import RegularizerConfig

NAMES = ("none", "l2", "ewc")
BLOCK_BYTES = 64 * 2**20  # of float32 entries of B A at once


@dataclass(frozen=True)
class Change:
    """How one tensor of the base differs from where it began.

    Attributes:
        name: of the base's tensor.
        parameters: A, B of a LoRA matrix; or the parameter itself.
        start: θ_0 of a parameter that is trained itself; None for a LoRA matrix.
        scaling: s of a LoRA matrix.
    """

    name: str
    parameters: tuple[Tensor, ...]
    start: Tensor | None = None
    scaling: float = 1.0

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.parameters[0].device

    def squared_norm(self) -> Float[Tensor, ""]:
        """Return ‖Δθ‖² of this tensor, in float32."""
        if self.start is not None:
            return (self.parameters[0].float() - self.start.float()).square().sum()
        a, b = (parameter.float() for parameter in self.parameters)
        return self.scaling**2 * ((b.mT @ b) * (a @ a.mT)).sum()

    def weighted(self, weights: Tensor) -> Float[Tensor, ""]:
        """Return Σ F Δθ² of this tensor, in float32."""
        if self.start is not None:
            return (weights.float() * (self.parameters[0].float() - self.start.float()).square()).sum()
        a, b = self.parameters
        value: Tensor = _WeightedProduct.apply(a, b, weights, self.scaling)  # type: ignore[no-untyped-call]
        return value


class ParameterRegularizer:
    """A penalty on all changes of a model.

    Args:
        changes: of every trained tensor.
        weight: λ.
    """

    def __init__(self, changes: list[Change], weight: float) -> None:
        self.changes = changes
        self.weight = weight

    def place(self) -> None:
        """Move θ_0 to where the weights are; the Trainer moves these after they were read."""
        self.changes = [
            change if change.start is None else replace(change, start=change.start.to(change.device))
            for change in self.changes
        ]

    @abstractmethod
    def __call__(self) -> Float[Tensor, ""]:
        """Return the penalty at the current weights."""


class L2(ParameterRegularizer):
    """λ ‖Δθ‖² (R6)."""

    def __call__(self) -> Float[Tensor, ""]:
        """Return the penalty."""
        return self.weight * torch.stack([change.squared_norm() for change in self.changes]).sum()


class EWC(ParameterRegularizer):
    """λ/2 Σ F Δθ² (R7).

    Args:
        changes: of every trained tensor.
        weight: λ.
        fisher: F by name of the base's tensor.
    """

    def __init__(self, changes: list[Change], weight: float, fisher: dict[str, Tensor]) -> None:
        super().__init__(changes, weight)
        self.fisher = fisher

    def place(self) -> None:
        """Move θ_0 and F to where the weights are."""
        super().place()
        self.fisher = {change.name: self.fisher[change.name].to(change.device) for change in self.changes}

    def __call__(self) -> Float[Tensor, ""]:
        """Return the penalty."""
        terms = [change.weighted(self.fisher[change.name]) for change in self.changes]
        return 0.5 * self.weight * torch.stack(terms).sum()


def check_regularizer(config: RegularizerConfig, strategy: str) -> None:
    """Refuse options that a penalty cannot have.

    Raises:
        UserError: naming the key.
    """
    if config.name == "none":
        for key in ("weight", "fisher"):
            if getattr(config, key) is not None:
                raise UserError(f"regularizer.{key} has no meaning without a penalty; set regularizer.name=l2 or ewc")
        return
    if config.weight is None:
        raise UserError(f"regularizer.name={config.name} needs regularizer.weight, its λ, which is not published")
    if config.name == "ewc" and config.fisher is None:
        raise UserError("regularizer.name=ewc needs regularizer.fisher, Fisher information made by 'dtm statistics'")
    if config.name == "l2" and config.fisher is not None:
        raise UserError("regularizer.fisher is for regularizer.name=ewc; remove it")
    if strategy not in ("single", "auto", "ddp"):
        raise UserError(
            f"regularizer.name={config.name} reads whole weights, which launch.strategy={strategy} cuts into shards; "
            "use launch=single or launch=ddp"
        )


def make_regularizer(config: RegularizerConfig, model: nn.Module) -> ParameterRegularizer | None:
    """Return the penalty that ``config`` asks for, at the model's present weights as θ_0; None for none.

    Raises:
        UserError: if the Fisher information lacks a trained tensor, or has it in another shape.
    """
    if config.name == "none":
        return None
    assert config.weight is not None  # check_regularizer
    changes = list(find_changes(model))
    if config.name == "l2":
        return L2(changes, config.weight)
    return EWC(changes, config.weight, _read_fisher(str(config.fisher), changes))


def find_changes(model: nn.Module) -> Iterator[Change]:
    """Yield how each trained tensor of a model differs from its present state.

    Raises:
        UserError: for adapters that are not plain LoRA on matrices.
    """
    if not isinstance(model, PeftModel):
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                yield Change(name, (parameter,), parameter.detach().clone())
        return
    adapter = model.active_adapter
    adapted: set[int] = set()
    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer) or adapter not in module.lora_A:
            continue
        a, b = cast(Tensor, module.lora_A[adapter].weight), cast(Tensor, module.lora_B[adapter].weight)
        adapted |= {id(a), id(b)}
        yield Change(f"{name.removeprefix(PREFIX)}.weight", (a, b), scaling=module.scaling[adapter])
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in adapted:
            raise UserError(
                f"regularizer: '{name}' is trained beside LoRA's A and B; leave out model.lora.modules_to_save"
            )


def _read_fisher(name: str, changes: list[Change]) -> dict[str, Tensor]:
    found = {}
    with closing(open_statistics(name, "fisher", "regularizer.fisher")) as statistics:
        for change in changes:
            if change.name not in statistics.tensors:
                raise UserError(f"regularizer.fisher={name} has no '{change.name}', which is trained")
            stored, shape = statistics.tensors[change.name].shape, _shape(change)
            if stored != shape:
                raise UserError(
                    f"regularizer.fisher={name}: '{change.name}' is of shape {stored}, the weight of {shape}"
                )
            values = statistics.read(change.name, 0, math.prod(shape)).reshape(shape)
            found[change.name] = values
    return found


def _shape(change: Change) -> tuple[int, ...]:
    if change.start is not None:
        return tuple(change.start.shape)
    a, b = change.parameters
    return b.shape[0], a.shape[1]


class _WeightedProduct(torch.autograd.Function):
    """Σ F ∘ (s B A)² with its gradients in A and B, a block of rows of B A at a time."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, weights: Tensor, scaling: float) -> Tensor:  # type: ignore[override]
        total = torch.zeros((), dtype=torch.float32, device=a.device)
        first, second = a.float(), b.float()
        grad_a, grad_b = torch.zeros_like(first), torch.empty_like(second)
        size = max(1, BLOCK_BYTES // (4 * first.shape[1]))
        for start in range(0, len(second), size):
            rows = slice(start, start + size)
            product = scaling * (second[rows] @ first)
            slope = weights[rows].float() * product
            total += (slope * product).sum()
            grad_b[rows] = 2 * scaling * (slope @ first.mT)
            grad_a += 2 * scaling * (second[rows].mT @ slope)
        ctx.save_for_backward(grad_a.to(a.dtype), grad_b.to(b.dtype))
        return total

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        grad_a, grad_b = ctx.saved_tensors
        return grad * grad_a, grad * grad_b, None, None
