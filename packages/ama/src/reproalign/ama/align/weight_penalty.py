r"""L1 and L2 penalties that hold the trained weights near θ_0: their values, and their gradients without a graph.

With Δ = θ - θ_0 of all N trained weights, λ the weight and c the scale

    l1          λ c Σ|Δ|                         gradient  λ c sign(Δ), sign(0) = 0
    l2          λ c √(Σ Δ²), the norm            gradient  λ c Δ / ‖Δ‖, 0 at Δ = 0
    l2 squared  λ c Σ Δ²                         gradient  2 λ c Δ

each divided by N where the mean is asked for. The paper (eq. 2) prints λ ‖θ - θ_0‖_p and *adds* it to an objective that
is maximised; what is meant, and done in its code and here, is a penalty. The release takes the mean and c = 1e5 (l1) or
1e9 (l2 squared). The gradient needs no autograd: it is added to the gradients of a step once they are complete, which
is the same for any number of micro-batches, processes and shards, and holds θ_0 and nothing else of the model's size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


@dataclass(frozen=True)
class WeightPenalty:
    """A penalty towards θ_0 as a function of Σ|Δ|^order (eq. 2).

    Attributes:
        order: 1 or 2.
        factor: λ c, at least 0.
        mean: divide by the number of weights.
        root: of order 2, take the norm instead of its square.
    """

    order: int
    factor: float
    mean: bool = False
    root: bool = False

    def value(self, total: Float[Tensor, ""], count: int) -> Float[Tensor, ""]:
        """Return the penalty.

        Args:
            total: Σ|Δ|^order over all trained weights.
            count: N.
        """
        return self._factor(count) * (total.sqrt() if self.root else total)

    def slope(self, delta: Tensor, total: Float[Tensor, ""], count: int) -> Tensor:
        """Return the gradient of :meth:`value` with respect to one tensor's weights, in the shape of ``delta``."""
        if self.order == 1:
            return self._factor(count) * delta.sign()
        if self.root:
            norm = float(total.sqrt())
            return delta * (self._factor(count) / norm if norm > 0 else 0.0)
        return 2 * self._factor(count) * delta

    def _factor(self, count: int) -> float:
        return self.factor / count if self.mean else self.factor


def penalise(
    penalty: WeightPenalty, weights: Iterable[tuple[Tensor, Tensor]], *, gradient_scale: float = 1.0
) -> Float[Tensor, ""]:
    """Add the penalty's gradient to the weights' gradients, and return its value.

    Args:
        penalty: which one.
        weights: θ and θ_0 of every trained tensor; sharded ones (DTensor) alike.
        gradient_scale: of gradients that were scaled for float16.

    Returns:
        The value, over all shards; the gradients are in ``grad``, complete as far as this process holds them.
    """
    pairs = list(weights)
    total = torch.stack([_total(_delta(*pair), penalty.order) for pair in pairs]).sum()
    count = sum(theta.numel() for theta, _ in pairs)
    for theta, start in pairs:
        slope = penalty.slope(_delta(theta, start), total, count).mul_(gradient_scale).to(theta.dtype)
        theta.grad = slope if theta.grad is None else theta.grad.add_(slope)
    return penalty.value(total, count)


class Start:
    """θ_0: the trained weights of a model as they are now, on the CPU until they are asked for.

    Args:
        model: before wrappers and checkpoints change it; under FSDP only the first process need hold its weights.
    """

    def __init__(self, model: nn.Module) -> None:
        self._waiting = {
            name: torch.empty(weight.shape, dtype=weight.dtype) if weight.is_meta else weight.detach().cpu().clone()
            for name, weight in trained(model).items()
        }
        self._placed: dict[str, Tensor] = {}

    def beside(self, model: nn.Module) -> list[tuple[Tensor, Tensor]]:
        """Return θ and θ_0 of every trained tensor of the same model, placed and sharded alike."""
        return [(weight, self._place(name, weight)) for name, weight in trained(model).items()]

    def _place(self, name: str, weight: Tensor) -> Tensor:
        if name in self._waiting:
            whole = self._waiting.pop(name)
            if isinstance(weight, DTensor):
                whole = whole.to(weight.device_mesh.device_type)
                self._placed[name] = distribute_tensor(whole, weight.device_mesh, weight.placements)
            else:
                self._placed[name] = whole.to(weight.device)
        return self._placed[name]


def trained(model: nn.Module) -> Mapping[str, nn.Parameter]:
    """Return the weights that are trained, by the names that they have whatever wraps the model's layers."""
    return {
        name.replace("_checkpoint_wrapped_module.", ""): weight
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }


def _delta(theta: Tensor, start: Tensor) -> Tensor:
    wide = torch.promote_types(theta.dtype, torch.float32)
    return theta.detach().to(wide) - start.to(wide)


def _total(delta: Tensor, order: int) -> Float[Tensor, ""]:
    total = delta.abs().sum() if order == 1 else delta.square().sum()
    return total.full_tensor() if isinstance(total, DTensor) else total
