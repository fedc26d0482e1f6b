"""Training a policy on preference pairs against a frozen reference: the loop of DPO and its kin, without the loss."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from reproalign.common.config import LogprobsConfig
from reproalign.common.logprobs.model import install_completion_logps
from reproalign.common.text.collate import forward_inputs
from reproalign.common.training.pairs import PairScores, PairTrainer
from reproalign.common.training.reference import Reference


@dataclass(frozen=True)
class PairLogps:
    """Log π(y|x) of a micro-batch of pairs: summed over completion tokens, in nats, with the token counts."""

    policy_chosen: Float[Tensor, " pairs"]
    policy_rejected: Float[Tensor, " pairs"]
    ref_chosen: Float[Tensor, " pairs"]
    ref_rejected: Float[Tensor, " pairs"]
    tokens_chosen: Float[Tensor, " pairs"]
    tokens_rejected: Float[Tensor, " pairs"]


class PairedPreferenceTrainer(PairTrainer):
    """Computes policy and reference log-probs of chosen and rejected in one forward each; a paper adds the loss.

    Batches come from :class:`reproalign.common.text.collate.PairCollator`: (2·pairs, seq), chosen rows first.

    Args:
        reference: the frozen reference policy, see :mod:`reproalign.common.training.reference`.
        logprobs: how per-token log-probabilities are computed.
        **kwargs: passed on to ``transformers.Trainer``.
    """

    def __init__(self, *, reference: Reference, logprobs: LogprobsConfig | None = None, **kwargs: Any) -> None:
        options = logprobs or LogprobsConfig()
        install_completion_logps(kwargs["model"], implementation=options.implementation, chunk_size=options.chunk_size)
        super().__init__(**kwargs)
        self.reference = reference
        reference.prepare(self.accelerator, options)

    @abstractmethod
    def pair_loss(
        self, logps: PairLogps, inputs: dict[str, Tensor]
    ) -> tuple[Float[Tensor, " losses"], Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
        """Return the losses and the implicit rewards of chosen and rejected."""

    def pair_scores(self, model: nn.Module, inputs: dict[str, Tensor]) -> PairScores:
        """Compute the log-probs of the micro-batch and hand them to :meth:`pair_loss`."""
        output = model(**forward_inputs(inputs), use_cache=False)
        chosen, rejected = output["sums"].chunk(2)
        ref_chosen, ref_rejected = self.reference.logps(model, inputs).chunk(2)
        tokens_chosen, tokens_rejected = output["counts"].to(chosen.dtype).chunk(2)
        logps = PairLogps(chosen, rejected, ref_chosen, ref_rejected, tokens_chosen, tokens_rejected)
        losses, chosen_rewards, rejected_rewards = self.pair_loss(logps, inputs)
        return PairScores(
            losses,
            chosen_rewards,
            rejected_rewards,
            metrics={"logps/chosen": chosen.mean(), "logps/rejected": rejected.mean()},
            likelihoods=(chosen / tokens_chosen, rejected / tokens_rejected),
        )
