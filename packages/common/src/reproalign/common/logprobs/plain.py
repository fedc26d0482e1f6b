"""The oracle: log-probabilities and token statistics from full logits, written to be read."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

IGNORE = -100


def token_logps(
    logits: Float[Tensor, "batch seq vocab"], labels: Int[Tensor, "batch seq"], ignore_index: int = IGNORE
) -> Float[Tensor, "batch seq-1"]:
    """Log-probability of every label given the tokens before it, in nats.

    lp[t] = log softmax(logits[t])[labels[t + 1]], and 0 where ``labels[t + 1]`` is ``ignore_index``. The first token is
    never scored. (TRL 0.7.7's ``get_batch_logps``.)

    Raises:
        ValueError: if logits and labels differ in batch or length.
    """
    if logits.shape[:2] != labels.shape:
        raise ValueError(f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)} differ in batch or length")
    targets = labels[:, 1:]
    scored = targets != ignore_index
    logps = torch.log_softmax(logits[:, :-1], dim=-1)
    picked = torch.gather(logps, 2, targets.masked_fill(~scored, 0).unsqueeze(2)).squeeze(2)
    return picked * scored


def sequence_logps(
    logits: Float[Tensor, "batch seq vocab"],
    labels: Int[Tensor, "batch seq"],
    average: bool = False,
    ignore_index: int = IGNORE,
) -> Float[Tensor, " batch"]:
    """Sum (or mean) of :func:`token_logps` over the scored tokens; a row without any gives 0 (or NaN)."""
    sums = token_logps(logits, labels, ignore_index).sum(-1)
    return sums / (labels[:, 1:] != ignore_index).sum(-1) if average else sums


def token_statistics(
    logits: Float[Tensor, "tokens vocab"],
    ref_logits: Float[Tensor, "tokens vocab"],
    targets: Int[Tensor, " tokens"],
    measure: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
) -> dict[str, Float[Tensor, " tokens"]]:
    """Every statistic of :mod:`reproalign.common.logprobs.statistics`, by its formula and by autograd.

    ``risk`` is there if ``measure`` is given; its gradient is the measure's own derivative.
    """
    logps, ref_logps = torch.log_softmax(logits, -1), torch.log_softmax(ref_logits, -1).detach()
    probabilities, ref_probabilities = logps.exp(), ref_logps.exp()
    difference = ref_logps - logps
    values = {
        "logps": logps.gather(1, targets[:, None]).squeeze(1),
        "ref_logps": ref_logps.gather(1, targets[:, None]).squeeze(1),
        "forward_kl": (ref_probabilities * difference).sum(1),
        "reverse_kl": -(probabilities * difference).sum(1),
        "entropy": -(probabilities * logps).sum(1),
    }
    if measure is not None:
        values["risk"] = differentiable(measure, difference, ref_probabilities)
    return values


def differentiable(
    measure: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    d: Float[Tensor, "tokens vocab"],
    p: Float[Tensor, "tokens vocab"],
) -> Float[Tensor, " tokens"]:
    """The values of ``measure`` with its derivatives in d as their gradient: for whoever has d in a graph."""
    values, weights = measure(d.detach(), p)
    return values + (weights * (d - d.detach())).sum(1)
