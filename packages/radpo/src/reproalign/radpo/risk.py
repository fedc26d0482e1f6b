r"""One-step risk measures Φ of the log-ratio d = log π_ref - log π under p = π_ref; applied at every position they make
the nested measure whose sum over a response is the sequential risk ratio R(y) = Σ_t Φ[d_t].

A measure maps d and log p (tokens, vocab) to its values (tokens,), in nats, and to their derivatives in d (tokens,
vocab), written by hand: a caller that holds logits of one chunk of positions at a time needs no graph. p is a constant:
it is the frozen reference's; it comes as its logarithm, since an entry whose p is too small for the dtype may be the
one that an exponential of d makes count. d is a cost: large where the policy gives away what the reference found
likely, so that the upper tail is the bad one. Sources: arXiv 2505.20359, Theorem 3.6 and appendix A.1, for CVaR and the
entropic measure; ``ERRATA.md`` for ``released_*`` and for where the paper contradicts itself.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reproalign.common.errors import UserError, choose
from reproalign.common.logprobs.quantiles import linear_quantile, upper_tail
from reproalign.common.logprobs.statistics import Measure

Rows = Float[Tensor, "tokens vocab"]
PerToken = Float[Tensor, " tokens"]


def expectation(d: Rows, log_p: Rows) -> tuple[PerToken, Rows]:
    """Risk-neutral: Σ_v p d = KL(π_ref‖π), TDPO's term."""
    p = log_p.exp()
    return torch.linalg.vecdot(p, d), p


def cvar(d: Rows, log_p: Rows, level: float) -> tuple[PerToken, Rows]:
    """Conditional value at risk: the mean of the upper tail of d that holds the mass ``level`` under π_ref.

    What is retained is the mass c = ``level`` of the largest d, so that the paper's .99 leaves out the smallest
    hundredth and c -> 1 is the KL, TDPO's term; c -> 0 is the worst case max d. CVaR_c = q + (1/c) Σ_v p (d - q)₊ with
    q the p-weighted (1-c)-quantile of d. By the envelope theorem the derivative is p/c above q, and on the atom at q
    what completes the mass to 1.
    """
    p = log_p.exp()
    _, share = upper_tail(d, p, level)
    weights = share.mul_(p).div_(level)
    return torch.linalg.vecdot(weights, d), weights


def cvar_complement(d: Rows, log_p: Rows, level: float) -> tuple[PerToken, Rows]:
    """:func:`cvar` of the tail beyond the ``level``-quantile: the mass 1 - ``level`` of the largest d is retained.

    The formula that the paper's appendix A.1 prints; its figures and its code have the other one (ERRATA P1).
    """
    return cvar(d, log_p, 1 - level)


def entropic(d: Rows, log_p: Rows, coefficient: float) -> tuple[PerToken, Rows]:
    """Entropic risk measure (1/μ) log Σ_v p exp(μ d), μ = ``coefficient``; μ -> 0 is the KL, μ -> ∞ the worst case.

    Every entry is retained, with a weight that grows with exp(μ d); it is the Rényi divergence of order 1 + μ of π_ref
    from π. Its derivative is the tilted distribution p exp(μ d) / Σ p exp(μ d).
    """
    tilted = log_p + coefficient * d
    return tilted.logsumexp(1) / coefficient, tilted.softmax(1)


def entropic_scaled(d: Rows, log_p: Rows, coefficient: float, beta: float) -> tuple[PerToken, Rows]:
    """Entropic risk with the temperature inside: (1/(βμ)) log Σ_v p exp(βμ d), μ = ``coefficient``, β = ``beta``.

    The paper takes β out of Φ[β d], which holds for CVaR but not here: Φ^μ[β d] = β Φ^{βμ}[d], so that its μ = 5, 7, 9
    and β = .1 make the coefficients .5, .7, .9 of :func:`entropic` (ERRATA P3).
    """
    return entropic(d, log_p, beta * coefficient)


def mean_semideviation(d: Rows, log_p: Rows, coefficient: float) -> tuple[PerToken, Rows]:
    """Mean and upper semideviation of order 1: m + κ Σ_v p (d - m)₊ with m = Σ_v p d, κ = ``coefficient``.

    An extension. Order 1, since order 2 has no derivative where d is constant, that is where training starts.
    """
    p = log_p.exp()
    mean = (p * d).sum(1, keepdim=True)
    above = (d > mean).to(d.dtype)
    value = mean + coefficient * (p * above * (d - mean)).sum(1, keepdim=True)
    return value.squeeze(1), p * (1 + coefficient * (above - (p * above).sum(1, keepdim=True)))


def released_tail(d: Rows, log_p: Rows, level: float, split: bool = True) -> tuple[PerToken, Rows]:
    """The released risk ratio: Σ_v p d 1[d > q], not divided by the tail's mass.

    q is the quantile at 1 - ``level`` that counts every entry of the vocabulary alike: what is retained is a share
    ``level`` of the entries, whatever their mass. What a level near 1 leaves out is negative, so that this lies above
    the KL and near :func:`cvar`. ``split``: each half of the vocabulary has its own q (ERRATA Q1, Q9).
    """
    weights = log_p.exp() * _above_quantile(d, level, split)[0]
    return (weights * d).sum(1), weights


MEASURES: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    function.__name__: function
    for function in (expectation, cvar, cvar_complement, entropic, entropic_scaled, mean_semideviation, released_tail)
}


def measure(name: str, **parameters: float | bool) -> Measure:
    """Return the measure of that name with its parameters checked and bound.

    Raises:
        UserError: for an unknown measure; for parameters that are missing or not its own; for a level outside (0, 1), a
            coefficient or beta that is not positive, or a coefficient above 1 for ``mean_semideviation`` (which then is
            not monotone).
    """
    function = MEASURES[choose("risk measure", name, MEASURES)]
    own = list(inspect.signature(function).parameters.values())[2:]
    known, needed = {option.name for option in own}, {option.name for option in own if option.default is option.empty}
    if not needed <= parameters.keys() <= known:
        takes = f"takes {', '.join(option.name for option in own)}" if own else "takes no parameters"
        raise UserError(f"risk measure '{name}' {takes}, but got {', '.join(parameters) or 'none'}")
    level, coefficient = parameters.get("level", 0.5), parameters.get("coefficient", 1.0)
    if not 0 < level < 1:
        raise UserError(f"risk measure '{name}': level={level} must be between 0 and 1, without both ends")
    if not (math.isfinite(coefficient) and coefficient > 0):
        raise UserError(f"risk measure '{name}': coefficient={coefficient} must be positive; 0 is 'expectation'")
    beta = parameters.get("beta", 1.0)
    if not (math.isfinite(beta) and beta > 0):
        raise UserError(f"risk measure '{name}': beta={beta} must be positive")
    if function is mean_semideviation and coefficient > 1:
        raise UserError(f"risk measure '{name}': coefficient={coefficient} must be at most 1")
    return partial(function, **parameters)


def released_distribution(
    logits: Rows, ref_logits: Rows, targets: Int[Tensor, " tokens"], level: float, split: bool
) -> tuple[PerToken, PerToken, PerToken]:
    """The release with ``is_cal_risk_distribution_logps=true``: every log-prob above the quantile becomes the quantile.

    With ℓ the log-probs of the policy and q their quantile at 1 - ``level`` (as in :func:`released_tail`), r = q 1[ℓ >
    q] stands for ℓ everywhere, in the margins too (ERRATA Q2); r' likewise for the reference. Gradients reach the
    policy through the order statistics of q alone.

    Returns:
        r and r' of the targets, and the risk ratio Σ_v π_ref (r' - r).
    """
    ref_logps = ref_logits.log_softmax(1)
    (above, quantile), (ref_above, ref_quantile) = (
        _above_quantile(logps, level, split) for logps in (logits.log_softmax(1), ref_logps)
    )
    replaced, ref_replaced = above * quantile, ref_above * ref_quantile
    ratio = (ref_logps.exp() * (ref_replaced - replaced)).sum(1)
    picked, ref_picked = (part.gather(1, targets[:, None]).squeeze(1) for part in (replaced, ref_replaced))
    return picked, ref_picked, ratio


def _above_quantile(values: Rows, level: float, split: bool) -> tuple[Rows, Rows]:
    """1[v > q] and q, with q the unweighted quantile at 1 - level of the row, or of the half of it that v is in."""
    parts = values.tensor_split([values.shape[1] // 2], dim=1) if split else (values,)
    quantile = torch.cat([linear_quantile(part, 1 - level)[:, None].expand_as(part) for part in parts], dim=1)
    return (values > quantile).to(values.dtype), quantile
