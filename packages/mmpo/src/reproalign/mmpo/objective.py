r"""MMPO's objectives on log-probabilities and rewards.

Symbols: u = log π(y|x) - log π_ref(y|x) of a response, log-probs summed over its tokens; h = u_w - u_l of a pair (R2);
β the temperature; q the target probability that w is preferred (R1); σ the logistic function.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from jaxtyping import Float

from reproalign.common.lazy import torch
from reproalign.common.options import option
from reproalign.common.training.objective import Needs, Objective, Pairs, PairScores, Responses

if TYPE_CHECKING:
    from reproalign.common.training.reward import RewardPairs

HELP = "temperature: how strongly the policy is held to the reference"


@dataclass(frozen=True)
class MarginObjective(Objective):
    """What objectives on pairs with targets share; rewards are β u."""

    beta: float = option(0.01, above=0, help=HELP)
    label_smoothing: float = option(
        0.0, at_least=0, below=0.5, help="ε of q' = (1-ε) q + ε (1-q); released: of pairs without q alone (ERRATA Q8)"
    )
    average_log_prob: bool = option(False, help="mean instead of summed log-probs (newer TRL's IPO)")
    reference_free: bool = option(False, help="take the reference's log-ratio as 0")

    @property
    def needs(self) -> Needs:
        """Log-probs of a reference, unless it is left out."""
        return Needs("pairs", reference="none" if self.reference_free else "logps")

    @property
    def reads_targets(self) -> bool:
        """Whether q counts."""
        return True

    def __call__(self, batch: Pairs) -> PairScores:
        """Return the losses of the pairs' log-ratios, whose difference is h (R2), and targets; and the rewards."""
        chosen, rejected = self._log_ratios(batch.chosen), self._log_ratios(batch.rejected)
        losses = self.losses(chosen, rejected, self.targets(batch))
        return PairScores(losses, (self.beta * chosen).detach(), (self.beta * rejected).detach())

    def losses(self, chosen: torch.Tensor, rejected: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        """Return the losses of log-ratios u_w and u_l and targets q, (pairs,) each."""
        raise NotImplementedError

    def targets(self, batch: Pairs) -> Float[torch.Tensor, " pairs"]:
        """Return q, smoothed; 1 - ε of pairs without targets."""
        epsilon, like = self.label_smoothing, batch.chosen.logps
        if batch.p_chosen is None:
            return torch.full_like(like, 1 - epsilon)
        q = batch.p_chosen.to(like.dtype)
        return (1 - epsilon) * q + epsilon * (1 - q) if epsilon else q

    def without_smoothing(self) -> MarginObjective:
        """Return it with targets as they are given, as the release has them (ERRATA Q8)."""
        return replace(self, label_smoothing=0.0)

    def _log_ratios(self, side: Responses) -> Float[torch.Tensor, " pairs"]:
        if not self.average_log_prob:
            return side.log_ratios
        assert side.tokens is not None  # the trainer counts them
        policy = side.logps / side.tokens
        return policy if side.ref_logps is None else policy - side.ref_logps / side.tokens


@dataclass(frozen=True)
class MMPO(MarginObjective):
    """Margin matching: -q log σ(βh) - (1-q) log σ(-βh) = softplus(-βh) + (1-q) βh (R3).

    The binary cross-entropy of the Bradley-Terry probability σ(βh) against q; its gradient in h is β(σ(βh) - q) and its
    minimiser βh = γm. q = 1 is DPO, q = 1-ε for all pairs is conservative DPO. Written as two softplus terms: the
    second form subtracts large numbers when βh is large.
    """

    name: ClassVar[str] = "sigmoid"

    def losses(self, chosen: torch.Tensor, rejected: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        """Return (R3)."""
        h = chosen - rejected
        return q * softplus(-self.beta * h) + (1 - q) * softplus(self.beta * h)


@dataclass(frozen=True)
class _MaybeSoft(MarginObjective):
    soft: bool = option(False, help="q l(h) + (1-q) l(-h); false: the margin is ignored, as released (ERRATA Q10)")

    @property
    def reads_targets(self) -> bool:
        """Where the losses are soft."""
        return self.soft

    def losses(self, chosen: torch.Tensor, rejected: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        """Return l(h), or q l(h) + (1-q) l(-h)."""
        h = chosen - rejected
        return q * self.hard(h) + (1 - q) * self.hard(-h) if self.soft else self.hard(h)

    def hard(self, h: torch.Tensor) -> torch.Tensor:
        """Return l(h)."""
        raise NotImplementedError


@dataclass(frozen=True)
class Hinge(_MaybeSoft):
    """SLiC-style hinge: max(0, 1 - βh)."""

    name: ClassVar[str] = "hinge"

    def hard(self, h: torch.Tensor) -> torch.Tensor:
        """Return the hinge."""
        return torch.relu(1 - self.beta * h)


@dataclass(frozen=True)
class IPO(_MaybeSoft):
    """IPO (Azar et al., 2023): (h - 1/(2β))²."""

    name: ClassVar[str] = "ipo"

    def hard(self, h: torch.Tensor) -> torch.Tensor:
        """Return the square."""
        return (h - 1 / (2 * self.beta)) ** 2


@dataclass(frozen=True)
class KTOPair(_MaybeSoft):
    """KTO on pairs: 1 - σ(β(u_w - K_l)) for chosen, then 1 - σ(β(K_w - u_l)) for rejected: two losses a pair.

    K_w = max(0, mean u_w) and K_l = max(0, mean u_l) over the micro-batch. Gradients flow through K, as released.
    """

    name: ClassVar[str] = "kto_pair"

    def losses(self, chosen: torch.Tensor, rejected: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        """Return both halves, each weighted with q and 1-q if soft."""
        if not self.soft:
            return self._halves(chosen, rejected)
        weight = torch.cat([q, q])
        # Swapped roles: the second half of the swapped losses belongs to the chosen responses.
        swapped = self._halves(rejected, chosen).roll(len(q))
        return weight * self._halves(chosen, rejected) + (1 - weight) * swapped

    def _halves(self, chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
        beta = self.beta
        mean_chosen, mean_rejected = chosen.mean().clamp(min=0), rejected.mean().clamp(min=0)
        return torch.cat(
            [1 - torch.sigmoid(beta * (chosen - mean_rejected)), 1 - torch.sigmoid(beta * (mean_chosen - rejected))]
        )


OBJECTIVES: dict[str, type[MarginObjective]] = {objective.name: objective for objective in (MMPO, Hinge, IPO, KTOPair)}


@dataclass(frozen=True)
class Likelihood(Objective):
    """Ranks pairs by a policy's own log-probs, without a reference; for evaluation alone.

    Attributes:
        normalisation: of :func:`reproalign.common.evaluation.rewardbench.response_scores`.
    """

    normalisation: str
    name: ClassVar[str] = "likelihood"
    needs = Needs("pairs", reference="none")

    def __call__(self, batch: Pairs) -> PairScores:
        """Return the scores as rewards, and the cross-entropy per token of chosen as the loss."""
        from reproalign.common.evaluation.rewardbench import response_scores

        def score(side: Responses) -> torch.Tensor:
            assert side.per_token is not None  # no statistics are asked for
            assert side.tokens is not None
            return response_scores(side.per_token, side.tokens.long(), self.normalisation)

        chosen = batch.chosen
        assert chosen.tokens is not None
        return PairScores(-chosen.logps / chosen.tokens, score(chosen), score(batch.rejected))


@dataclass(frozen=True)
class MMPOReward:
    """Reward model: q softplus(-d) + (1-q) softplus(d) per pair with d = r(x, y_w) - r(x, y_l) (R4).

    Pairs with a margin m have softplus(-(d - m)) instead, and q is not used (Llama 2).

    Attributes:
        batch_targets: the release subtracts (B, 1) rewards and multiplies by (B,) targets, so that every pair meets
            every target and the mean is that of q̄ softplus(-d) + (1-q̄) softplus(d), with q̄ the micro-batch mean
            (with margins likewise d_i - m_j; ERRATA Q5). True gives losses with this mean.
    """

    batch_targets: bool = False

    def __call__(self, batch: RewardPairs) -> Float[torch.Tensor, " pairs"]:
        """Return (R4)."""
        d, margin = batch.chosen - batch.rejected, batch.margin
        if margin is not None:
            return softplus(margin[None, :] - d[:, None]).mean(1) if self.batch_targets else softplus(margin - d)
        q = torch.ones_like(d) if batch.p_chosen is None else batch.p_chosen.to(d.dtype)
        if self.batch_targets:
            q = q.mean().expand_as(q)
        return q * softplus(-d) + (1 - q) * softplus(d)


def softplus(x: torch.Tensor) -> torch.Tensor:
    """log(1 + e^x); torch's own is cut off to x above 20, which shows in float64."""
    return -torch.nn.functional.logsigmoid(-x)
