r"""How MORE weights its domains: from head gradients to λ.

At every step, with g_k = ∂L_k/∂w of the domains k in the batch (:mod:`reproalign.more.loss`),

    m_k ← (1 - α) m_k + α g_k                                             momentum                            (R3)
    m̃_k = m_k by one of NORMALIZATIONS                                                                        (R3)
    λ = argmin over the simplex of ‖Σ_k λ_k m̃_k‖²                         :mod:`reproalign.more.min_norm`     (R2)

and the model is trained on Σ_k λ_k L_k (eq. 7). The paper's λ (its appendix B) has neither momentum nor normalisation:
m̃_k = g_k. Then, with x = Σ_k λ_k g_k, g_k · x ≥ ‖x‖² for every k (VI): to first order in the head no domain's loss goes
up along the step -x. With m̃ ≠ g that does not hold, since λ balances the m̃ and the step is still -Σ_k λ_k g_k:
of g = (1, 0), (-3, 4) ``l2`` makes λ = (1/2, 1/2) and the step (1, -2), along which the first loss goes up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from reproalign.common.errors import UserError, choose
from reproalign.more.config import NORMALIZATIONS, WeightsConfig
from reproalign.more.loss import DomainSums
from reproalign.more.min_norm import frank_wolfe, min_norm_point
from reproalign.more.rules import MoreRules

TINY = torch.finfo(torch.float32).tiny  # the smallest normal number


def settle_weights(config: WeightsConfig, domains: list[str], defaults: Mapping[str, Any]) -> WeightsConfig:
    """Check the options, and put the variant's defaults in the place of those that are null.

    Args:
        config: as composed.
        domains: names of those that are trained on.
        defaults: ``weights`` of :class:`reproalign.more.rules.MoreRules`.

    Raises:
        UserError: naming the key, its value and what is allowed.
    """
    config = replace(config, **{key: value for key, value in defaults.items() if getattr(config, key) is None})
    assert config.alpha is not None
    if config.rule != "fixed":
        if config.fixed:
            raise UserError(f"weights.fixed is read with weights.rule=fixed alone; the rule is {config.rule}")
        return config
    if set(config.fixed) != set(domains):
        raise UserError(
            f"weights.fixed names {', '.join(sorted(config.fixed)) or 'no domain'}; give one weight to each of "
            f"{', '.join(domains)}"
        )
    if not sum(config.fixed.values()) > 0:
        raise UserError(f"weights.fixed={config.fixed}: one of them must be above 0")
    return config


def normalize_gradients(
    gradients: Float[Tensor, "domains hidden"],
    losses: Float[Tensor, " domains"],
    kind: str,
    least_loss: float = TINY,
) -> Float[Tensor, "domains hidden"]:
    r"""Bring the domains' gradients to comparable lengths: m̃_k = m_k / c_k (R3).

    c_k is 1 (``none``), ‖m_k‖ (``l2``), p_k = (L_k + 1) / Σ_j (L_j + 1) (``loss``) or ‖m_k‖ L_k (``loss+``). A norm
    of 0 counts as 1.

    Args:
        gradients: m_k of the domains that take part.
        losses: L_k of the same domains, in nats.
        kind: one of NORMALIZATIONS.
        least_loss: what L_k counts in ``loss+`` at least; 0 lets a loss of 0 divide by 0 (ERRATA Q7).
    """
    choose("weights.normalize", kind, NORMALIZATIONS)
    if kind == "none":
        return gradients
    if kind == "loss":
        return gradients / ((losses + 1) / (losses + 1).sum())[:, None]
    norms = gradients.norm(dim=1)
    norms = torch.where(norms == 0, 1.0, norms)
    if kind == "l2":
        return gradients / norms[:, None]
    return gradients / (norms * losses.clamp(min=least_loss))[:, None]


def with_pairs(sums: DomainSums, *, grouped: bool) -> Bool[Tensor, " domains"]:
    """Return which domains take part: those with pairs in the batch."""
    return sums.pairs > 0


def no_momentum(domains: int, hidden: int, seed: int) -> Float[Tensor, "domains hidden"]:
    """Return m before the first step: zeros."""
    return torch.zeros(domains, hidden)


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
    """Keeps the domains' momentum (R3) from step to step and makes their weights λ (R2).

    Args:
        config: rule, normalisation, α, solver; null: as the variant has them.
        domains: their names.
        momentum: m_k before the first step.
        rules: of the variant.

    Raises:
        UserError: for options that cannot be meant (:func:`settle_weights`).
    """

    def __init__(
        self, config: WeightsConfig, domains: list[str], momentum: Float[Tensor, "domains hidden"], rules: MoreRules
    ) -> None:
        self.config = settle_weights(config, domains, rules.weights)
        self.domains, self.rules, self.momentum = domains, rules, momentum
        self.solve = min_norm_point if self.config.solver == "exact" else _frank_wolfe

    @property
    def needs_gradients(self) -> bool:
        """Whether the rule reads more of a batch than which domains are in it."""
        return self.config.rule == "min-norm"

    def step(self, sums: DomainSums, *, grouped: bool) -> Balance:
        """Take in the sums of one batch (of a whole step, or of one process: the caller decides); return the weights.

        Args:
            sums: of the batch; without gradients where :attr:`needs_gradients` is false.
            grouped: every batch has items of every domain (resampling). A domain that does not take part, by
                :attr:`MoreRules.present`, keeps its momentum and gets no weight.

        Raises:
            UserError: if the gradients are not finite.
        """
        present = self.rules.present(sums, grouped=grouped)
        if self.config.rule == "uniform":
            weights = _shares(present.double())
        elif self.config.rule == "fixed":
            fixed = torch.tensor([self.config.fixed[name] for name in self.domains], device=present.device)
            weights = _shares(fixed.double() * present)
        else:
            self._remember(sums.mean_gradients(), present)
            weights = self._min_norm(sums.mean_losses(), present)
        return Balance(weights.to(sums.losses), present, sums.mean_gradients().norm(dim=1))

    def _remember(self, gradients: Float[Tensor, "domains hidden"], present: Bool[Tensor, " domains"]) -> None:
        assert self.config.alpha is not None
        self.momentum = self.momentum.to(gradients.device)  # the device is known once the model is placed
        moved = (1 - self.config.alpha) * self.momentum + self.config.alpha * gradients.to(self.momentum.dtype)
        self.momentum = torch.where(present[:, None], moved, self.momentum)

    def _min_norm(
        self, losses: Float[Tensor, " domains"], present: Bool[Tensor, " domains"]
    ) -> Float[Tensor, " domains"]:
        weights = torch.zeros(len(present), dtype=torch.float64, device=present.device)
        chosen = present.nonzero().flatten()
        if not len(chosen):
            return weights
        assert self.config.normalize is not None
        # In float64: a product in TF32 would be no Gram matrix any more.
        vectors = normalize_gradients(
            self.momentum[chosen].double(), losses[chosen].double(), self.config.normalize, self.rules.least_loss
        )
        try:
            found = self.solve((vectors @ vectors.T).cpu().numpy())
        except ValueError as error:
            raise UserError(
                f"the domains' gradients cannot be balanced ({error}); lower trainer.learning_rate, or use "
                "weights.normalize=l2"
            ) from error
        weights[chosen] = torch.from_numpy(found).to(weights)
        return weights


def _frank_wolfe(gram: ArrayLike) -> NDArray[np.float64]:
    return frank_wolfe(gram)[0]


def _shares(values: Float[Tensor, " domains"]) -> Float[Tensor, " domains"]:
    return values / values.sum().clamp(min=torch.finfo(values.dtype).tiny)
