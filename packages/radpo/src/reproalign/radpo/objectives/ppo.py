r"""Offline PPO, as HALOs has it: terminal rewards of 1 and -1, a critic on the policy's states, a KL term.

With ρ = exp(log π - log π_old) per token, A from :func:`gae` and targets from :func:`future_rewards`,

    policy   max(-A ρ, -A clip(ρ, c, 1/c))
    critic   (V - target)² / 2
    kl       log π_old - log π
    L = mean policy + critic_coef · mean critic + kl_coef · mean kl      over the tokens of the batch            (R11)

π_old is the reference, in the release and here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool, Float

from reproalign.common.lazy import torch
from reproalign.common.options import option
from reproalign.common.training.objective import Examples, ExampleScores, Needs
from reproalign.radpo.objectives.base import RadpoObjective

__all__ = ["PPO"]


@dataclass(frozen=True)
class PPO(RadpoObjective):
    """Offline PPO in one step (R11); rewards log π - log π_old of the response.

    Losses are per example such that their mean is the mean over the completion tokens of the batch.
    """

    name: ClassVar[str] = "ppo"
    kind: ClassVar[str] = "unpaired"
    accumulates: ClassVar[bool] = False
    reward_scale: ClassVar[float] = 0.1  # β of the other objectives, so that held-out rewards compare

    cliprange: float = option(0.5, above=0, at_most=1, help="c: probability ratios are clipped to [c, 1/c]")
    gamma: float = option(0.99, at_least=0, at_most=1, help="discount")
    lam: float = option(0.95, at_least=0, at_most=1, help="λ of the generalised advantage estimates")
    critic_coef: float = option(0.01, above=0, help="weight of the critic's loss")
    kl_coef: float = option(0.1, above=0, help="weight of the KL term (released: KL_coef)")
    ppo_epochs: int = option(1, at_least=1, help="steps on each batch one after the other", variant="released")
    v_head_max_grad_norm: float = option(0.1, above=0, help="the value head's gradients are clipped to this norm")

    @property
    def needs(self) -> Needs:
        """A critic beside the policy."""
        return Needs("examples", value_head=self.v_head_max_grad_norm)

    @property
    def steps_per_batch(self) -> int:
        """As many as ``ppo_epochs``."""
        return self.ppo_epochs

    def advantages(self, batch: Examples) -> torch.Tensor:
        """A, which holds for all the steps on a batch."""
        assert batch.values is not None  # PPO's policies have a value head
        assert batch.mask is not None
        return gae(batch.values, self._rewards(batch), batch.mask, self.gamma, self.lam)

    def __call__(self, batch: Examples) -> ExampleScores:
        """Return (R11), with its terms, the share of clipped tokens and the ratio Π ρ of the response as metrics."""
        if batch.mask is None or batch.token_logps is None or batch.ref_token_logps is None or batch.values is None:
            raise ValueError("PPO needs log-probs per token and values: token_logps, ref_token_logps, values and mask")
        mask, values = batch.mask, batch.values
        advantages = self.advantages(batch) if batch.advantages is None else batch.advantages
        targets = future_rewards(self._rewards(batch), mask, self.gamma)
        log_ratios = (batch.token_logps - batch.ref_token_logps) * mask
        ratio = log_ratios.exp()
        surrogate, clipped = -advantages * ratio, -advantages * ratio.clamp(self.cliprange, 1 / self.cliprange)

        def per_example(quantity: torch.Tensor) -> torch.Tensor:
            return (quantity * mask).sum(1) * len(mask) / mask.sum()

        policy = per_example(torch.maximum(surrogate, clipped))
        critic = per_example(0.5 * (values - targets) ** 2)
        kl = per_example(-log_ratios)
        rewards = log_ratios.detach().sum(1)
        metrics = {
            "ppo/policy": policy.detach(),
            "ppo/critic": critic.detach(),
            "ppo/kl": kl.detach(),
            "ppo/clip_fraction": per_example((clipped > surrogate).to(ratio.dtype)).detach(),
            "ppo/sequence_ratio": rewards.exp(),
        }
        return ExampleScores(policy + self.critic_coef * critic + self.kl_coef * kl, rewards, metrics)

    def _rewards(self, batch: Examples) -> torch.Tensor:
        assert batch.mask is not None
        assert batch.values is not None
        return terminal_rewards(batch.desirable, batch.mask).to(batch.values.dtype)


def terminal_rewards(
    desirable: Bool[torch.Tensor, " examples"], mask: Bool[torch.Tensor, "examples tokens"]
) -> Float[torch.Tensor, "examples tokens"]:
    """Rewards of (R11): 1 or -1 on the last token of the mask for a desirable or undesirable example, 0 elsewhere."""
    last = mask & (mask.flip(1).cumsum(1).flip(1) == 1)
    return torch.where(desirable[:, None], 1.0, -1.0) * last


def gae(
    values: Float[torch.Tensor, "examples tokens"],
    rewards: Float[torch.Tensor, "examples tokens"],
    mask: Bool[torch.Tensor, "examples tokens"],
    gamma: float,
    lam: float,
) -> Float[torch.Tensor, "examples tokens"]:
    """Generalised advantage estimates of (R11), normalised over the tokens of the mask, 0 elsewhere; no gradient.

    A_t = Σ_k (γλ)^k δ_{t+k}, δ_t = r_t + γ V_{t+1} - V_t, with V = 0 off the mask; then (A - mean) / sqrt(variance +
    1e-8), the variance divided by the number of tokens.
    """
    values = values.detach() * mask
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    advantages = _discounted(rewards * mask + gamma * following - values, gamma * lam)
    variance, mean = torch.var_mean(advantages[mask], correction=0)
    return (advantages - mean) * torch.rsqrt(variance + 1e-8) * mask


def future_rewards(
    rewards: Float[torch.Tensor, "examples tokens"], mask: Bool[torch.Tensor, "examples tokens"], gamma: float
) -> Float[torch.Tensor, "examples tokens"]:
    """Targets of the critic in (R11): Σ_{k>t} γ^(k-t-1) r_k, without the reward of the token itself; 0 off the mask."""
    totals = _discounted(rewards * mask, gamma)
    return torch.cat([totals[:, 1:], torch.zeros_like(totals[:, :1])], dim=1) * mask


def _discounted(terms: Float[torch.Tensor, "examples tokens"], factor: float) -> torch.Tensor:
    """y_t = x_t + factor · y_{t+1}."""
    total = torch.zeros_like(terms[:, 0])
    sums = []
    for term in reversed(terms.unbind(1)):
        total = term + factor * total
        sums.append(total)
    return torch.stack(sums[::-1], dim=1)
