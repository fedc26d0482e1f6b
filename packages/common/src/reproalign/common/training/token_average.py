"""The objective of supervised fine-tuning, and what its two averages weigh alike.

A supervised token has the loss ℓ = -log p(token | what is before it), in nats. A step of the optimiser sees
micro-batches m = 1..M of every process p = 1..P.

    micro_batch_mean    L = 1/(P M) Σ_p Σ_m mean of ℓ over the micro-batch
    token_mean          L = Σ ℓ / N, over all N supervised tokens of the step

The first is what trainers computed before transformers 4.46: with one row a micro-batch every row weighs the same,
however long its response is. A micro-batch without a supervised token has the loss NaN there and a gradient of exactly
zero, and it counts in M. The second does not depend on how the rows of a step are cut into micro-batches and padded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from reproalign.common.text.collate import IGNORED
from reproalign.common.training.collecting import CollectingTrainer

NORMALISATIONS = ("micro_batch_mean", "token_mean")


def micro_batch_mean(losses: Float[Tensor, " tokens"]) -> Float[Tensor, ""]:
    """Return the mean loss of a micro-batch; NaN with a zero gradient if it has no supervised token.

    Averaging these over accumulation steps and processes, which the trainer does, gives ``micro_batch_mean`` (DTM R2).
    """
    return losses.mean()


def token_mean(losses: Float[Tensor, " tokens"], share: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """Return a micro-batch's part of ``token_mean``: (P M / N) Σ ℓ, which averages to Σ ℓ / N over all micro-batches.

    DTM R2, over all tokens of a step.

    Args:
        losses: of the supervised tokens.
        share: P M / N of :func:`token_share`.
    """
    return losses.sum() * share


def token_share(tokens: int, micro_batches: int, processes: int) -> Float[Tensor, ""]:
    """Return P M / N of a step, what each token's loss is multiplied with; NaN without tokens.

    Args:
        tokens: N, the supervised tokens of the step, over all processes.
        micro_batches: M, of each process.
        processes: P.
    """
    return torch.tensor(processes * micro_batches / tokens if tokens else float("nan"), dtype=torch.float64)


class TokenAverageTrainer(CollectingTrainer):
    """A trainer on rows of ``input_ids`` and ``labels`` that averages the tokens' losses in either way.

    Args:
        normalisation: one of :data:`NORMALISATIONS`.
        **kwargs: passed on to ``transformers.Trainer``.
    """

    def __init__(self, *, normalisation: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.normalisation = normalisation

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor | int | None]:
        """Take the micro-batches of a step; for ``token_mean`` each is told its ``share``, a token's weight."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.normalisation == "token_mean" and batches:
            local = torch.stack([(batch["labels"][:, 1:] != IGNORED).sum() for batch in batches]).sum()
            tokens = int(self.accelerator.reduce(local.to(device), reduction="sum"))
            share = token_share(tokens, len(batches), self.accelerator.num_processes)
            batches = [{**batch, "share": share.float()} for batch in batches]
        return batches, items
