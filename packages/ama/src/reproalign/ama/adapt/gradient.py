"""The gradient of a ratio, layer by layer: no third copy of the weights, no gradient of a weight that is kept.

A merged layer computes y = x Wᵀ + b with W = a P + (1 - a) Q, where P is the model before RLHF, Q the one after, and
a the ratio of the layer's group. W is held merged, so that the forward is one product, and beside it D = P - Q. Since
dW/da = D, a loss with the gradient g at y has

    dL/da = Σ ⟨g, x Dᵀ⟩ + ⟨Σ g, d⟩,    d = b_P - b_Q,    dL/dx = g W,

one product more than a frozen layer needs for its backward. No exact way is cheaper for a D of full rank: 1.5 times
the products of a frozen forward and backward.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional


class MergedLinear(Function):
    """y = x Wᵀ + b for W merged at the ratio a, differentiable in x and a."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "*batch inputs"],
        ratio: Float[Tensor, ""],
        weight: Float[Tensor, "outputs inputs"],
        difference: Float[Tensor, "outputs inputs"],
        bias: Float[Tensor, " outputs"] | None,
        bias_difference: Float[Tensor, " outputs"] | None,
    ) -> Float[Tensor, "*batch outputs"]:
        """Compute y; what a frozen layer would not keep is x."""
        x = x.to(weight.dtype)  # autocast does so for a layer of its own
        ctx.save_for_backward(x, weight, difference, bias_difference)
        ctx.ratio = ratio
        return functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Float[Tensor, "*batch outputs"]) -> tuple[Tensor | None, ...]:
        """Return dL/dx and dL/da; the weights are constants."""
        (gradient,) = gradients
        x, weight, difference, bias_difference = ctx.saved_tensors
        of_x = gradient @ weight if ctx.needs_input_grad[0] else None
        of_ratio = None
        if ctx.needs_input_grad[1]:
            moved = functional.linear(x, difference, bias_difference)
            of_ratio = inner(gradient, moved).to(ctx.ratio.device, ctx.ratio.dtype)
        return of_x, of_ratio, None, None, None, None


def inner(left: Float[Tensor, "*shape"], right: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Return ⟨left, right⟩, multiplied and added in float32 at least."""
    wide = torch.float64 if left.dtype == torch.float64 else torch.float32
    return torch.dot(left.reshape(-1).to(wide), right.reshape(-1).to(wide))
