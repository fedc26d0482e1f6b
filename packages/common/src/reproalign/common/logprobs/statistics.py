r"""Per-token statistics of a policy against its reference over the whole vocabulary, a chunk of tokens at a time.

With l = log softmax(z) of the policy, l' of the reference, π = exp(l), p = exp(l'), d = l' - l and target y, per token

    logps        l[y]
    ref_logps    l'[y]                                  (constant)
    forward_kl   Σ_v p (l' - l)  = KL(π_ref ‖ π)
    reverse_kl   Σ_v π (l - l')  = KL(π ‖ π_ref)
    entropy      -Σ_v π l
    risk         Φ[d(V)], V ~ p, of a :data:`Measure`

Computed plainly, each takes several tokens x vocabulary float32 buffers. Here the buffers are chunk_size x vocabulary,
in the forward and in the backward, which makes the logits again.

Backward. With incoming gradients g_s per statistic s, w = dΦ/dd (from the measure) and, since d has -l in it,
dΦ/dl = -w, the gradient of the policy's logits is

    dL/dz = g_logps (e_y - π) + g_forward (π - p) + g_reverse π (-d - reverse_kl) - g_entropy π (l + entropy)
            + g_risk (π Σ_v w - w)

and from there on to hidden states, head and bias as in :mod:`reproalign.common.logprobs.chunked`. The reference gets no
gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
    statistics_dtype,
)
from reproalign.common.logprobs.head_states import HeadStates, log_softmax_of

STATISTICS = ("logps", "ref_logps", "forward_kl", "reverse_kl", "entropy", "risk")
BUFFERS = 2  # chunks are smaller than those of log-probs alone by this, since more buffers of theirs exist at once

# (d, log p), both (tokens, vocab) -> (Φ, dΦ/dd), (tokens,) and (tokens, vocab). The arguments are the caller's: not
# overwritten. log p and not p, since what p loses far out in a tail (below 1e-45 in float32) may count for most.
Measure = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def chunked_token_statistics(
    policy: HeadStates,
    reference: HeadStates,
    targets: Int[Tensor, " tokens"],
    *,
    statistics: Sequence[str] = ("logps", "ref_logps", "forward_kl"),
    measure: Measure | None = None,
    chunk_size: int | None = None,
) -> dict[str, Float[Tensor, " tokens"]]:
    """Compute ``statistics`` (module docstring) of every token, in nats, in O(chunk_size x vocab) memory.

    ``forward_kl`` is a term of Ra-DPO R2, ``risk`` of R3.

    Args:
        policy: has ``hidden`` and ``weight``; gradients reach them and ``bias``.
        reference: same tokens, same vocabulary; another hidden size and another head are fine.
        targets: token ids.
        statistics: names out of :data:`STATISTICS`.
        measure: Φ, needed for ``risk``.
        chunk_size: tokens whose logits exist at once; None: by the vocabulary and the kind of device.

    Returns:
        (tokens,) tensors by name, float32, or float64 for float64 inputs.

    Raises:
        ValueError: for an unknown statistic, ``risk`` without measure, different vocabularies or numbers of tokens, or
            a chunk size below 1.
    """
    unknown = set(statistics) - set(STATISTICS)
    if unknown:
        raise ValueError(f"unknown statistics {sorted(unknown)}; choose from {', '.join(STATISTICS)}")
    if "risk" in statistics and measure is None:
        raise ValueError("the statistic 'risk' needs a measure")
    if policy.hidden is None or policy.weight is None:
        raise ValueError("the policy's hidden states and head weight are needed")
    check_reference(reference, len(targets), policy.weight.shape[0])
    hidden, weight, bias = policy.hidden, policy.weight, policy.bias
    size = positions_at_once(chunk_size, weight.shape[0], hidden.device, buffers=BUFFERS)
    dtype = compute_dtype(hidden)
    reference = replace(
        reference,
        hidden=_cast(reference.hidden, dtype),
        weight=_cast(reference.weight, dtype),
    )
    options = _Options(tuple(statistics), measure, policy.softcap, policy.scale, reference, size, dtype)
    with torch.autocast(hidden.device.type, enabled=False):
        values = _ChunkedStatistics.apply(hidden, weight, bias, targets, options)  # type: ignore[no-untyped-call]
    return dict(zip(statistics, values, strict=True))


def _cast(tensor: Any, dtype: torch.dtype) -> Any:
    return None if tensor is None else tensor.to(dtype)


def check_reference(reference: HeadStates, tokens: int, vocab: int) -> None:
    """Refuse a reference that does not fit.

    Raises:
        ValueError: for another number of tokens or another vocabulary.
    """
    if reference.logits is not None:
        found = tuple(reference.logits.shape)
    elif reference.hidden is not None and reference.weight is not None:
        found = (reference.hidden.shape[0], reference.weight.shape[0])
    else:
        raise ValueError("the reference's hidden states and head weight, or its logits, are needed")
    if found != (tokens, vocab):
        raise ValueError(f"the reference has (tokens, vocabulary) {found}, the policy {(tokens, vocab)}")


@dataclass(frozen=True)
class _Options:
    statistics: tuple[str, ...]
    measure: Measure | None
    softcap: float | None
    scale: float
    reference: HeadStates
    size: int
    dtype: torch.dtype  # of the products' factors


class _ChunkedStatistics(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, options: _Options
    ) -> tuple[Tensor, ...]:
        ctx.options = options
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden, weight, bias, targets)
        states, head = hidden.to(options.dtype), weight.to(options.dtype)
        policy = HeadStates(states, head, bias, options.softcap, options.scale)
        dtype = statistics_dtype(states)
        values = {name: hidden.new_empty(len(targets), dtype=dtype) for name in options.statistics}
        for part in chunks(len(targets), options.size):
            logps, ref_logps = log_softmax_of(policy, part), log_softmax_of(options.reference, part).to(dtype)
            found = _values(logps, ref_logps, targets[part], options)
            for name in options.statistics:
                values[name][part] = found[name]
        results = tuple(values[name] for name in options.statistics)
        ctx.mark_non_differentiable(*(value for name, value in values.items() if name == "ref_logps"))
        return results

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        options: _Options = ctx.options
        hidden, weight, bias, targets = ctx.saved_tensors
        states, head = hidden.to(options.dtype), weight.to(options.dtype)
        by_name = {name: grad for name, grad in zip(options.statistics, grads, strict=True) if grad is not None}
        gradients = HeadGradients(states, head, (hidden, weight, bias), ctx.needs_input_grad[:3])
        with torch.autocast(hidden.device.type, enabled=False):
            for part in chunks(len(targets), options.size):
                logits = chunk_logits(states[part], head, bias, options.softcap, options.scale)
                slope = cap_slope(logits, options.softcap)
                logps = logits.sub_(logits.logsumexp(1, keepdim=True))
                ref_logps = log_softmax_of(options.reference, part).to(logps.dtype)
                chunk_grads = {name: value[part] for name, value in by_name.items()}
                gradient = _logit_gradient(logps, ref_logps, targets[part], chunk_grads, options.measure)
                del logits, logps, ref_logps
                if options.scale != 1.0:
                    gradient.mul_(options.scale)
                gradients.add(part, gradient, slope)
        return (*gradients.result(), None, None)


def _values(logps: Tensor, ref_logps: Tensor, targets: Tensor, options: _Options) -> dict[str, Tensor]:
    wanted = set(options.statistics)
    values = {
        "logps": logps.gather(1, targets[:, None]).squeeze(1),
        "ref_logps": ref_logps.gather(1, targets[:, None]).squeeze(1),
    }
    if wanted & {"reverse_kl", "entropy"}:
        probabilities = logps.exp()
        values["entropy"] = -torch.linalg.vecdot(probabilities, logps)
        if "reverse_kl" in wanted:
            values["reverse_kl"] = -values["entropy"] - torch.linalg.vecdot(probabilities, ref_logps)
        del probabilities
    if wanted & {"forward_kl", "risk"}:
        difference = torch.sub(ref_logps, logps, out=logps)
        if "risk" in wanted:
            assert options.measure is not None  # chunked_token_statistics
            values["risk"] = options.measure(difference, ref_logps)[0]
        if "forward_kl" in wanted:
            values["forward_kl"] = torch.linalg.vecdot(ref_logps.exp_(), difference)
    return values


def _logit_gradient(
    logps: Tensor, ref_logps: Tensor, targets: Tensor, grads: dict[str, Tensor], measure: Measure | None
) -> Tensor:
    """dL/dz of the module docstring; overwrites its inputs."""
    probabilities = logps.exp()
    per_row = torch.zeros_like(logps[:, 0])  # what the row of π is multiplied with
    gradient = torch.zeros_like(logps) if grads.keys() & {"reverse_kl", "entropy"} else None
    if gradient is not None:
        entropy = -torch.linalg.vecdot(probabilities, logps)
        if "reverse_kl" in grads:
            reverse = -entropy - torch.linalg.vecdot(probabilities, ref_logps)
            gradient.addcmul_(logps - ref_logps, grads["reverse_kl"][:, None])
            per_row -= grads["reverse_kl"] * reverse
        if "entropy" in grads:
            gradient.addcmul_(logps, -grads["entropy"][:, None])
            per_row -= grads["entropy"] * entropy
    subtract: Tensor | None = None
    if grads.keys() & {"forward_kl", "risk"}:
        difference = torch.sub(ref_logps, logps, out=logps)
        if "risk" in grads:
            assert measure is not None  # chunked_token_statistics
            weights = measure(difference, ref_logps)[1]
            per_row += grads["risk"] * weights.sum(1)
            subtract = weights * grads["risk"][:, None]
        if "forward_kl" in grads:
            per_row += grads["forward_kl"]
            weighted = ref_logps.exp_().mul_(grads["forward_kl"][:, None])
            subtract = weighted if subtract is None else subtract.add_(weighted)
    if "logps" in grads:
        per_row -= grads["logps"]
    gradient = (
        probabilities.mul_(per_row[:, None])
        if gradient is None
        else gradient.add_(per_row[:, None]).mul_(probabilities)
    )
    if subtract is not None:
        gradient.sub_(subtract)
    if "logps" in grads:
        gradient[torch.arange(len(targets), device=targets.device), targets] += grads["logps"]
    return gradient
