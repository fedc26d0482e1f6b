"""Token statistics from full logits, written to be read."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor


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
        values["risk"] = differentiable(measure, difference, ref_logps)
    return values


def differentiable(
    measure: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    d: Float[Tensor, "tokens vocab"],
    log_p: Float[Tensor, "tokens vocab"],
) -> Float[Tensor, " tokens"]:
    """The values of ``measure`` with its derivatives in d as their gradient: for whoever has d in a graph."""
    values, weights = measure(d.detach(), log_p)
    return values + (weights * (d - d.detach())).sum(1)
