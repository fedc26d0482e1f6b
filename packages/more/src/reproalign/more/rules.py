"""What the paper and its release do differently, as one table of rules that a run chooses once.

The two tables are ``PAPER`` and ``RELEASED`` of :mod:`reproalign.more.released`; numbers in brackets are rows of
``ERRATA.md``. How a model reads and pools a text is in :mod:`reproalign.common.reward.rules`, the judge in
:mod:`reproalign.more.judged`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class MoreRules:
    """One variant of MORE.

    Attributes:
        weights: what null stands for in ``weights.*`` (App. B).
        whole_step: one λ, and one number of pairs per domain, for each optimiser step, from all processes and
            micro-batches; otherwise every process has its own for each of its micro-batches.
        present: (sums of a batch, whether it is of groups) -> which domains take part in λ.
        momentum: (domains, hidden size, seed) -> m before the first step (Q6).
        least_loss: what ``weights.normalize=loss+`` divides by at least (Q7).
        by_domain: lay a batch of several groups out domain by domain (Q18).
        warmup_decay: the learning rate follows DeepSpeed's WarmupDecayLR, unless ``trainer.lr_scheduler_type`` is set
            (Q20).
        comparable: (responses, scores) -> what the loss reads of an item; None leaves it out (Q8, Q17).
        resample: (sizes, size, generator, names) -> the items of each domain brought to one size (Q4).
        ties: how pairs of equal rewards count in the accuracy: ``wrong`` or ``half``.
        release_judge: a judge is asked and read as in the release (:mod:`reproalign.more.released_judge`).
    """

    weights: Mapping[str, Any]
    whole_step: bool
    present: Callable[..., Any]
    momentum: Callable[..., Any]
    least_loss: float
    by_domain: bool
    warmup_decay: bool
    comparable: Callable[..., Any]
    resample: Callable[..., Any]
    ties: str
    release_judge: bool
