r"""Log-probabilities from hidden states and the output head, a chunk of tokens at a time.

With hidden states h_t, head weight W and bias b, per token

    a_t = s (W h_t + b),   z_t = c tanh(a_t / c)  (or a_t without soft-capping),   lp_t = z_t[y_t] - logsumexp(z_t)

Full logits take tokens x vocabulary floats, several times over (logits, their float32 copy, log-softmax, gradient).
Here at most ``chunk_size`` x vocabulary floats exist at once, in the forward and in the backward.

Backward. Let g_t be the incoming gradient of lp_t, p_t = softmax(z_t) and e the unit vector of y_t. Then

    dL/dz_t = g_t (e - p_t)
    dL/da_t = dL/dz_t * (1 - (z_t / c)²)       since d/da c tanh(a/c) = 1 - tanh²(a/c)
    dL/dh_t = s Wᵀ dL/da_t,   dL/dW = s Σ_t dL/da_t h_tᵀ,   dL/db = s Σ_t dL/da_t

g_t scales the whole row, so dL/dh_t = g_t · J_t with J_t = s Wᵀ((e - p_t) * cap') independent of g. When the head is
frozen (LoRA), J_t is computed in the forward and kept in place of h_t, in float32: a backward without a matrix
product. When the head is trained, its gradient needs p_t after g_t is known, so the logits are made again, chunk
by chunk.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from reproalign.common.logprobs.chunks import (
    HeadGradients,
    cap_slope,
    chunk_logits,
    chunks,
    compute_dtype,
    positions_at_once,
    product,
    statistics_dtype,
)


def chunked_token_logps(
    hidden: Float[Tensor, "tokens hidden"],
    weight: Float[Tensor, "vocab hidden"],
    targets: Int[Tensor, " tokens"],
    *,
    bias: Float[Tensor, " vocab"] | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    chunk_size: int | None = None,
) -> Float[Tensor, " tokens"]:
    """Log-probability of each target under its hidden state, in nats.

    Equal to ``log_softmax(softcap(scale * (hidden @ weight.T + bias)))[targets]`` (module docstring), in
    O(chunk_size x vocab) memory. The factors of matrix products have the dtype of ``hidden`` (under autocast: its
    dtype); sums, logits and statistics are float32, or float64 for float64 inputs. Gradients are rounded once, to the
    dtype of their tensor.

    Args:
        hidden: final hidden states.
        weight: the output head's weight.
        targets: token ids.
        bias: the output head's bias.
        softcap: c of Gemma 2's ``final_logit_softcapping``.
        scale: s, e.g. Cohere's ``logit_scale`` or 1 / Granite's ``logits_scaling``.
        chunk_size: tokens whose logits exist at once; None: by the vocabulary and the kind of device.

    Returns:
        Log-probabilities in float32, or float64 for float64 inputs.

    Raises:
        ValueError: if ``chunk_size`` is not positive.
    """
    size = positions_at_once(chunk_size, weight.shape[0], hidden.device)
    dtype = compute_dtype(hidden)
    with torch.autocast(hidden.device.type, enabled=False):
        result: Tensor = _ChunkedLogps.apply(  # type: ignore[no-untyped-call]
            hidden, weight, bias, targets, _Options(dtype, softcap, scale, size)
        )
    return result


@dataclass(frozen=True)
class _Options:
    dtype: torch.dtype  # of the products' factors
    softcap: float | None
    scale: float
    size: int


class _ChunkedLogps(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, options: _Options
    ) -> Tensor:
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        ctx.recompute = need_weight or need_bias
        ctx.options = options
        softcap, scale = options.softcap, options.scale
        states, head = hidden.to(options.dtype), weight.to(options.dtype)
        wide = statistics_dtype(states)
        jacobian = torch.empty_like(hidden, dtype=wide) if need_hidden and not ctx.recompute else None
        logps = hidden.new_empty(len(targets), dtype=wide)
        for part in chunks(len(targets), options.size):
            logits = chunk_logits(states[part], head, bias, softcap, scale)
            slope = cap_slope(logits, softcap) if jacobian is not None else None
            picked = logits.gather(1, targets[part, None]).squeeze(1)
            logsumexp = logits.logsumexp(1)
            logps[part] = picked - logsumexp
            if jacobian is not None:
                gradient = _unit_minus_softmax(logits, logsumexp, targets[part])
                if slope is not None:
                    gradient.mul_(slope)
                jacobian[part] = product(gradient.to(head.dtype), head).mul_(scale)
        if ctx.recompute:
            ctx.save_for_backward(hidden, weight, bias, targets)
        elif jacobian is not None:
            ctx.dtype = hidden.dtype
            ctx.save_for_backward(jacobian)
        return logps

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if not ctx.recompute:
            (jacobian,) = ctx.saved_tensors
            return (jacobian * grad[:, None]).to(ctx.dtype), None, None, None, None
        hidden, weight, bias, targets = ctx.saved_tensors
        options: _Options = ctx.options
        softcap, scale = options.softcap, options.scale
        states, head = hidden.to(options.dtype), weight.to(options.dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            gradients = HeadGradients(states, head, (hidden, weight, bias), ctx.needs_input_grad[:3])
            for part in chunks(len(targets), options.size):
                logits = chunk_logits(states[part], head, bias, softcap, scale)
                slope = cap_slope(logits, softcap)
                gradient = _unit_minus_softmax(logits, logits.logsumexp(1), targets[part])
                gradients.add(part, gradient.mul_(grad[part, None] * scale), slope)
        return (*gradients.result(), None, None)


def _unit_minus_softmax(logits: Tensor, logsumexp: Tensor, targets: Tensor) -> Tensor:
    """e_y - softmax(z), written into the logits' buffer."""
    gradient = logits.sub_(logsumexp[:, None]).exp_().neg_()
    gradient[torch.arange(len(targets), device=targets.device), targets] += 1.0
    return gradient
