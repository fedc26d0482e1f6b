"""The gradient of a ratio, layer by layer: no third copy of the weights, no gradient of a weight that is kept.

A merged layer computes y = x Wᵀ + b with W = a P + (1 - a) Q, where P is the model before RLHF, Q the one after, and
a the ratio of the layer's group. With D = P - Q, dW/da = D, and a loss with the gradient g at y has

    dL/da = Σ ⟨g, x Dᵀ⟩ + ⟨Σ g, d⟩,    d = b_P - b_Q,    dL/dx = g W,                                       (R4)

one product more than a frozen layer needs for its backward. No exact way needs fewer for a D of full rank: 1.5 times
the products of a frozen forward and backward.

Two matrices are held for a layer, in one of two ways. ``merged``: W and D, for ratios that stand still over many
rows. ``pair``: P and Q, of which W and D are made one layer at a time where a product needs them (three passes over
the entries), for ratios that move at every step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

Merge = Callable[..., Tensor]  # of P, Q and ratio=, without changing either
# Entries that are merged at a time: on a CPU such that the float32 copies stay in its cache.
SLICE = {"cpu": 1 << 16}
SLICE_ELSEWHERE = 1 << 22


@dataclass
class Scratch:
    """Memory for the one matrix that is in use, as large as the largest; all layers share it."""

    _held: dict[tuple[torch.device, torch.dtype], Tensor] = field(default_factory=dict)

    def like(self, tensor: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return an unset tensor of the same shape, dtype and device, which the next call may overwrite."""
        key = (tensor.device, tensor.dtype)
        held = self._held.get(key)
        if held is None or held.numel() < tensor.numel():
            held = self._held[key] = tensor.new_empty(tensor.numel())
        return held[: tensor.numel()].view(tensor.shape)


@dataclass(frozen=True)
class Blend:
    """Makes W and D of P and Q at a ratio.

    Attributes:
        merge: of P, Q and the ratio.
        ratio: a.
        scratch: where matrices are made.
    """

    merge: Merge
    ratio: float
    scratch: Scratch

    def weight(self, pre: Float[Tensor, "*shape"], post: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return W in the scratch memory, entry for entry as a merge into a new model."""
        target = self.scratch.like(pre)
        merge_into(target, pre, post, self.merge, self.ratio)
        return target

    def bias(self, pre: Float[Tensor, " outputs"], post: Float[Tensor, " outputs"]) -> Float[Tensor, " outputs"]:
        """Return b, in memory of its own."""
        return self.merge(pre, post, self.ratio).to(pre.dtype)

    def difference(self, pre: Float[Tensor, "*shape"], post: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return D in the scratch memory, rounded once."""
        return torch.sub(pre, post, out=self.scratch.like(pre))


def merge_into(
    target: Float[Tensor, "*shape"],
    pre: Float[Tensor, "*shape"],
    post: Float[Tensor, "*shape"],
    merge: Merge,
    ratio: float,
) -> None:
    """Fill a tensor with the merge of two, a slice at a time."""
    size = SLICE.get(target.device.type, SLICE_ELSEWHERE)
    slices = (tensor.reshape(-1).split(size) for tensor in (pre, post))
    for into, before, after in zip(target.view(-1).split(size), *slices, strict=True):
        into.copy_(merge(before, after, ratio))


class MergedLinear(Function):
    """y = x Wᵀ + b for W merged at the ratio a, differentiable in x and a (R4)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Float[Tensor, "*batch inputs"],
        ratio: Float[Tensor, ""],
        first: Float[Tensor, "rows columns"],
        second: Float[Tensor, "rows columns"],
        bias: Float[Tensor, " outputs"] | None,
        second_bias: Float[Tensor, " outputs"] | None,
        blend: Blend | None = None,
        transposed: bool = False,
    ) -> Float[Tensor, "*batch outputs"]:
        """Compute y; what a frozen layer would not keep is x.

        Args:
            ctx: of autograd.
            x: inputs.
            ratio: takes dL/da.
            first: W, or P if there is a blend.
            second: D, or Q if there is a blend.
            bias: of the first; None: there is none.
            second_bias: of the second.
            blend: of P and Q, at the ratio in force.
            transposed: the matrices are stored with a row for each input.
        """
        x = x.to(first.dtype)  # autocast does so for a layer of its own
        ctx.save_for_backward(x, first, second, bias, second_bias)
        ctx.ratio, ctx.blend, ctx.transposed = ratio, blend, transposed
        weight = first if blend is None else blend.weight(first, second)
        if blend is not None and bias is not None and second_bias is not None:
            bias = blend.bias(bias, second_bias)
        return functional.linear(x, weight.T if transposed else weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Float[Tensor, "*batch outputs"]) -> tuple[Tensor | None, ...]:
        """Return dL/dx and dL/da; the matrices are constants."""
        (gradient,) = gradients
        x, first, second, bias, second_bias = ctx.saved_tensors
        blend = ctx.blend
        of_x = of_ratio = None
        if ctx.needs_input_grad[0]:
            weight = first if blend is None else blend.weight(first, second)
            of_x = gradient @ (weight.T if ctx.transposed else weight)
        if ctx.needs_input_grad[1]:
            difference = second if blend is None else blend.difference(first, second)
            if blend is not None and bias is not None:
                second_bias = bias - second_bias
            moved = functional.linear(x, difference.T if ctx.transposed else difference, second_bias)
            of_ratio = inner(gradient, moved).to(ctx.ratio.device, ctx.ratio.dtype)
        return of_x, of_ratio, None, None, None, None, None, None


def inner(left: Float[Tensor, "*shape"], right: Float[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Return ⟨left, right⟩, multiplied and added in float32 at least."""
    wide = torch.float64 if left.dtype == torch.float64 else torch.float32
    return torch.dot(left.reshape(-1).to(wide), right.reshape(-1).to(wide))
