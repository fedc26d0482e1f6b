r"""One-step risk measures Φ of the log-ratio d = log π_ref - log π under p = π_ref; applied at every position they make
the nested measure whose sum over a response is the sequential risk ratio R(y) = Σ_t Φ[d_t].

A measure is a value, called with d and log p (tokens, vocab): it returns its values (tokens,), in nats, and their
derivatives in d (tokens, vocab), written by hand: a caller that holds logits of one chunk of positions at a time needs
no graph. p is a constant: it is the frozen reference's; it comes as its logarithm, since an entry whose p is too small
for the dtype may be the one that an exponential of d makes count. d is a cost: large where the policy gives away what
the reference found likely, so that the upper tail is the bad one. Sources: arXiv 2505.20359, Theorem 3.6 and appendix
A.1, for CVaR and the entropic measure; ``ERRATA.md`` for ``released_*`` and for where the paper contradicts itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from jaxtyping import Float, Int

from reproalign.common.lazy import torch
from reproalign.common.options import option
from reproalign.common.options.check import check_value


@dataclass(frozen=True)
class RiskMeasure:
    """Φ, called with d and log p (tokens, vocab): returns its values (tokens,) and derivatives in d (tokens, vocab).

    Raises:
        ValueError: for parameters out of range; in the call, for tensors that are no two matrices of one shape.
    """

    name: ClassVar[str]  # as it is chosen by ``loss.risk=``

    def __post_init__(self) -> None:
        """Refuse parameters out of range."""
        check_value(self)

    def __call__(self, d: torch.Tensor, log_p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return Φ[d] and its derivative in d."""
        if d.ndim != 2 or d.shape != log_p.shape:
            raise ValueError(f"d and log p are (tokens, vocab), got {tuple(d.shape)} and {tuple(log_p.shape)}")
        return self.measure(d, log_p)

    def measure(
        self, d: Float[torch.Tensor, "tokens vocab"], log_p: Float[torch.Tensor, "tokens vocab"]
    ) -> tuple[Float[torch.Tensor, " tokens"], Float[torch.Tensor, "tokens vocab"]]:
        """Return Φ[d] and its derivative."""
        raise NotImplementedError

    def at(self, beta: float) -> RiskMeasure:
        """Return the measure at an objective's temperature β, on which all but one do not depend."""
        return self


@dataclass(frozen=True)
class Expectation(RiskMeasure):
    """Risk-neutral: Σ_v p d = KL(π_ref‖π), TDPO's term (R12)."""

    name: ClassVar[str] = "expectation"

    def measure(self, d: torch.Tensor, log_p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (R12), whose derivative is p."""
        p = log_p.exp()
        return torch.linalg.vecdot(p, d), p


@dataclass(frozen=True)
class CVaR(RiskMeasure):
    """Conditional value at risk: the mean of the upper tail of d that holds the mass ``level`` under π_ref (R13).

    What is retained is the mass c = ``level`` of the largest d, so that the paper's .99 leaves out the smallest
    hundredth and c = 1 is the KL, TDPO's term; c -> 0 is the worst case max d. CVaR_c = q + (1/c) Σ_v p (d - q)₊ with
    q the p-weighted (1-c)-quantile of d. By the envelope theorem the derivative is p/c above q, and on the atom at q
    what completes the mass to 1.
    """

    name: ClassVar[str] = "cvar"

    level: float = option(
        0.95, above=0, at_most=1, help="share of the mass that is retained, of the largest d; 1: TDPO"
    )

    def measure(self, d: torch.Tensor, log_p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (R13) and the weights of its tail."""
        return _tail(d, log_p, self.level)


@dataclass(frozen=True)
class CVaRComplement(RiskMeasure):
    """:class:`CVaR` of the tail beyond the ``level``-quantile: the mass 1 - ``level`` of the largest d is retained.

    (R13) as the paper's appendix A.1 prints it; its figures and its code have the other one (ERRATA P1).
    """

    name: ClassVar[str] = "cvar_complement"

    level: float = option(0.95, at_least=0, below=1, help="share of the mass that is left out, of the smallest d")

    def measure(self, d: torch.Tensor, log_p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (R13) at 1 - ``level``."""
        return _tail(d, log_p, 1 - self.level)


@dataclass(frozen=True)
class Entropic(RiskMeasure):
    """Entropic risk measure (1/μ) log Σ_v p exp(μ d) (R14); μ -> 0 is the KL, μ -> ∞ the worst case.

    Every entry is retained, with a weight that grows with exp(μ d); it is the Rényi divergence of order 1 + μ of π_ref
    from π. Its derivative is the tilted distribution p exp(μ d) / Σ p exp(μ d).
    """

    name: ClassVar[str] = "entropic"

    mu: float = option(5.0, above=0, help="risk aversion μ; towards 0: TDPO")

    def measure(self, d: torch.Tensor, log_p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (R14) and the tilted distribution."""
        return _entropic(d, log_p, self.mu)


@dataclass(frozen=True)
class EntropicScaled(RiskMeasure):
    """Entropic risk with the temperature inside: (1/(βμ)) log Σ_v p exp(βμ d).

    The paper takes β out of Φ[β d], which holds for CVaR but not here: Φ^μ[β d] = β Φ^{βμ}[d], so that its μ = 5, 7, 9
    and β = .1 make the coefficients .5, .7, .9 of :class:`Entropic` (ERRATA P3).
    """

    name: ClassVar[str] = "entropic_scaled"

    mu: float = option(5.0, above=0, help="risk aversion μ")
    beta: float | None = option(None, above=0, help="temperature inside the measure; null: the objective's")

    def measure(self, d: torch.Tensor, log_p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (R14) at βμ.

        Raises:
            ValueError: without a temperature of its own or an objective's (:meth:`at`).
        """
        if self.beta is None:
            raise ValueError("EntropicScaled has no temperature; give beta, or take .at(beta)")
        return _entropic(d, log_p, self.beta * self.mu)

    def at(self, beta: float) -> RiskMeasure:
        """Return the measure at β, unless it has a temperature of its own."""
        return self if self.beta is not None else replace(self, beta=beta)


@dataclass(frozen=True)
class MeanSemideviation(RiskMeasure):
    """Mean and upper semideviation of order 1: m + κ Σ_v p (d - m)₊ with m = Σ_v p d (R15).

    An extension. Order 1, since order 2 has no derivative where d is constant, that is where training starts. Above 1
    it would not be monotone.
    """

    name: ClassVar[str] = "mean_semideviation"

    kappa: float = option(0.5, above=0, at_most=1, help="weight κ of the semideviation; towards 0: TDPO")

    def measure(self, d: torch.Tensor, log_p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (R15) and its derivative."""
        p = log_p.exp()
        mean = (p * d).sum(1, keepdim=True)
        above = (d > mean).to(d.dtype)
        value = mean + self.kappa * (p * above * (d - mean)).sum(1, keepdim=True)
        return value.squeeze(1), p * (1 + self.kappa * (above - (p * above).sum(1, keepdim=True)))


@dataclass(frozen=True)
class ReleasedTail(RiskMeasure):
    """The released risk ratio: Σ_v p d 1[d > q], not divided by the tail's mass.

    q is the quantile at 1 - ``level`` that counts every entry of the vocabulary alike: what is retained is a share
    ``level`` of the entries, whatever their mass. What a level near 1 leaves out is negative, so that this lies above
    the KL and near :class:`CVaR` (ERRATA Q9).
    """

    name: ClassVar[str] = "released_tail"

    level: float = option(0.95, above=0, at_most=1, help="share of the vocabulary's entries that is retained")
    split: bool = option(
        True, help="a quantile for each half of the vocabulary (released: is_split_risk_ratio, ERRATA Q1)"
    )
    replace_logps: bool = option(
        False, help="quantiles in place of log-probs (released: is_cal_risk_distribution_logps, ERRATA Q2)"
    )

    def measure(self, d: torch.Tensor, log_p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the released ratio and its weights."""
        weights = log_p.exp() * _above_quantile(d, self.level, self.split)[0]
        return (weights * d).sum(1), weights


MEASURES: dict[str, type[RiskMeasure]] = {
    measure.name: measure
    for measure in (Expectation, CVaR, CVaRComplement, Entropic, EntropicScaled, MeanSemideviation, ReleasedTail)
}


def _tail(d: torch.Tensor, log_p: torch.Tensor, mass: float) -> tuple[torch.Tensor, torch.Tensor]:
    from reproalign.common.logprobs.quantiles import upper_tail

    p = log_p.exp()
    _, share = upper_tail(d, p, mass)
    weights = share.mul_(p).div_(mass)
    return torch.linalg.vecdot(weights, d), weights


def _entropic(d: torch.Tensor, log_p: torch.Tensor, mu: float) -> tuple[torch.Tensor, torch.Tensor]:
    tilted = log_p + mu * d
    return tilted.logsumexp(1) / mu, tilted.softmax(1)


def released_distribution(
    logits: Float[torch.Tensor, "tokens vocab"],
    ref_logits: Float[torch.Tensor, "tokens vocab"],
    targets: Int[torch.Tensor, " tokens"],
    level: float,
    split: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The release with ``is_cal_risk_distribution_logps=true``: every log-prob above the quantile becomes the quantile.

    With ℓ the log-probs of the policy and q their quantile at 1 - ``level`` (as in :class:`ReleasedTail`), r = q 1[ℓ >
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


def _above_quantile(values: torch.Tensor, level: float, split: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """1[v > q] and q, with q the unweighted quantile at 1 - level of the row, or of the half of it that v is in."""
    from reproalign.common.logprobs.quantiles import linear_quantile

    parts = values.tensor_split([values.shape[1] // 2], dim=1) if split else (values,)
    quantile = torch.cat([linear_quantile(part, 1 - level)[:, None].expand_as(part) for part in parts], dim=1)
    return (values > quantile).to(values.dtype), quantile
