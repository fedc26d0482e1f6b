r"""How MORE weights its domains: from head gradients to λ.

At every step, with g_k = ∂L_k/∂w of the domains k in the batch (:mod:`reproalign.more.loss`),

    m_k ← (1 - α) m_k + α g_k                                             momentum
    m̃_k = m_k by one of NORMALIZATIONS
    λ = argmin over the simplex of ‖Σ_k λ_k m̃_k‖²                         :mod:`reproalign.more.min_norm`

and the model is trained on Σ_k λ_k L_k: along -λ·m̃ no domain's loss goes up, to first order in the head.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from reproalign.common.errors import UserError, choose
from reproalign.more.config import WeightsConfig
from reproalign.more.loss import DomainSums
from reproalign.more.min_norm import frank_wolfe, min_norm_point

VARIANTS = ("paper", "released")
RULES = ("min-norm", "uniform", "fixed")
NORMALIZATIONS = ("none", "l2", "loss", "loss+")
SOLVERS = ("auto", "exact", "frank-wolfe")
RELEASED_UNIFORM = 3  # released: keys of the batch, which is a dictionary, in place of domains (ERRATA Q5)


def check_weights(config: WeightsConfig, domains: list[str], variant: str) -> None:
    """Refuse options that cannot be meant.

    Raises:
        UserError: naming the key, its value and what is allowed.
    """
    choose("variant", variant, VARIANTS)
    choose("weights.rule", config.rule, RULES)
    choose("weights.normalize", config.normalize, NORMALIZATIONS)
    choose("weights.solver", config.solver, SOLVERS)
    if not 0 < config.alpha <= 1:
        raise UserError(f"weights.alpha={config.alpha} must be above 0 and at most 1 (1: no momentum)")
    if config.rule != "fixed":
        if config.fixed:
            raise UserError(f"weights.fixed is read with weights.rule=fixed alone; the rule is {config.rule}")
        return
    if set(config.fixed) != set(domains):
        raise UserError(
            f"weights.fixed names {', '.join(sorted(config.fixed)) or 'no domain'}; give one weight to each of "
            f"{', '.join(domains)}"
        )
    if min(config.fixed.values()) < 0 or not sum(config.fixed.values()) > 0:
        raise UserError(f"weights.fixed={config.fixed} must not be negative, and one of them must be positive")


def normalize_gradients(
    gradients: Float[Tensor, "domains hidden"],
    losses: Float[Tensor, " domains"],
    kind: str,
    variant: str = "paper",
) -> Float[Tensor, "domains hidden"]:
    """Bring the domains' gradients to comparable lengths: m̃_k = m_k / c_k with c of :func:`divisors`."""
    c = divisors(gradients.norm(dim=1), losses, kind, variant)
    return gradients / c[:, None]


def divisors(
    norms: Float[Tensor, " domains"], losses: Float[Tensor, " domains"], kind: str, variant: str = "paper"
) -> Float[Tensor, " domains"]:
    r"""Return c_k: ``none``: 1; ``l2``: ‖m_k‖; ``loss``: p_k = (L_k + 1) / Σ_j (L_j + 1); ``loss+``: ‖m_k‖ L_k.

    A norm of 0 counts as 1.

    Args:
        norms: ‖m_k‖ of the domains that take part.
        losses: L_k of the same domains, in nats.
        kind: one of NORMALIZATIONS.
        variant: under ``released`` a loss of 0 makes ``loss+`` divide by 0 (ERRATA Q7); ``paper`` keeps it at float32's
            smallest normal number.
    """
    choose("weights.normalize", kind, NORMALIZATIONS)
    if kind == "none":
        return torch.ones_like(norms)
    if kind == "loss":
        return (losses + 1) / (losses + 1).sum()
    norms = torch.where(norms == 0, 1.0, norms)
    if kind == "l2":
        return norms
    floor = torch.finfo(torch.float32).tiny if variant == "paper" else 0.0
    return norms * losses.clamp(min=floor)


@dataclass(frozen=True)
class Balance:
    """What one step makes of its batch; of absent domains everything is 0.

    Attributes:
        weights: λ_k.
        present: which domains take part.
        gradient_norms: ‖g_k‖ before momentum and normalisation.
    """

    weights: Float[Tensor, " domains"]
    present: Bool[Tensor, " domains"]
    gradient_norms: Float[Tensor, " domains"]


class Balancer:
    """Keeps the domains' momentum from step to step and makes their weights.

    Args:
        config: rule, normalisation, α, solver.
        domains: their names.
        momentum: m_k before the first step.
        variant: chooses the solver where ``config.solver=auto``: the exact one, or the released Frank-Wolfe.
    """

    def __init__(
        self, config: WeightsConfig, domains: list[str], momentum: Float[Tensor, "domains hidden"], variant: str
    ) -> None:
        check_weights(config, domains, variant)
        self.config, self.domains, self.variant = config, domains, variant
        self.momentum = momentum
        exact = variant == "paper" if config.solver == "auto" else config.solver == "exact"
        self.solve = min_norm_point if exact else _frank_wolfe

    def step(self, sums: DomainSums, *, grouped: bool) -> Balance:
        """Take in the sums of one batch (of all processes, or of one: the caller decides) and return the weights.

        Args:
            sums: of the batch.
            grouped: every batch has items of every domain (resampling). The release then lets domains without pairs
                take part, with a gradient of 0; otherwise, and under ``paper``, a domain that has none in the batch
                keeps its momentum and gets no weight.

        Raises:
            UserError: if the gradients are not finite.
        """
        if self.variant == "released":
            present = torch.ones_like(sums.items, dtype=torch.bool) if grouped else sums.items > 0
        else:
            present = sums.pairs > 0
        losses, gradients = sums.mean_losses(), sums.mean_gradients()
        self.momentum = self.momentum.to(gradients.device)  # the device is known once the model is placed
        alpha = self.config.alpha
        moved = (1 - alpha) * self.momentum + alpha * gradients.to(self.momentum.dtype)
        self.momentum = torch.where(present[:, None], moved, self.momentum)
        weights = self._weights(losses, present, grouped)
        return Balance(weights.to(losses), present, gradients.norm(dim=1))

    def _weights(
        self, losses: Float[Tensor, " domains"], present: Bool[Tensor, " domains"], grouped: bool
    ) -> Float[Tensor, " domains"]:
        if self.config.rule == "uniform":
            if grouped and self.variant == "released":
                first = torch.arange(len(present), device=present.device) < RELEASED_UNIFORM
                return first.double() / RELEASED_UNIFORM
            return _shares(present.double())
        if self.config.rule == "fixed":
            fixed = torch.tensor([self.config.fixed[name] for name in self.domains], device=present.device)
            return _shares(fixed.double() * present)
        # One small transfer, the only one. Normalising scales rows and columns of the Gram matrix.
        vectors = self.momentum.double()  # a product in TF32 would be no Gram matrix any more
        gram = vectors @ vectors.T
        host = torch.cat([gram, losses[:, None].to(gram), present[:, None].to(gram)], 1).double().cpu()
        return self._solved(host[:, :-2], host[:, -2], host[:, -1].bool()).to(present.device)

    def _solved(
        self,
        gram: Float[Tensor, "domains domains"],
        losses: Float[Tensor, " domains"],
        present: Bool[Tensor, " domains"],
    ) -> Float[Tensor, " domains"]:
        weights = torch.zeros(len(present), dtype=torch.float64)
        chosen = present.nonzero().flatten()
        if not len(chosen):
            return weights
        gram = gram[chosen][:, chosen]
        c = divisors(gram.diagonal().clamp(min=0).sqrt(), losses[chosen], self.config.normalize, self.variant)
        try:
            weights[chosen] = torch.from_numpy(self.solve((gram / c[:, None] / c).numpy()))
        except ValueError as error:
            raise UserError(
                f"the domains' gradients cannot be balanced ({error}); lower trainer.learning_rate, or use "
                "weights.normalize=l2"
            ) from error
        return weights


def _frank_wolfe(gram: ArrayLike) -> NDArray[np.float64]:
    return frank_wolfe(gram)[0]


def _shares(values: Float[Tensor, " domains"]) -> Float[Tensor, " domains"]:
    return values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
