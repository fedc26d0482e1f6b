"""What the paper and its release do differently, as one table of rules that a run chooses once.

Numbers in brackets are rows of ``ERRATA.md``; what the release makes of texts and losses is in
:mod:`reproalign.radpo.released`, its schedules in :mod:`reproalign.radpo.schedule`.
"""

from __future__ import annotations

from dataclasses import dataclass

from reproalign.common.options.shared import by_variant


@dataclass(frozen=True)
class RadpoRules:
    """One variant of Ra-DPO.

    Attributes:
        halos: the chat template that ``model.chat_template=halos`` stands for (Q19).
        any_pair: pairs with an empty response, or of two equal ones, are kept (Q22); otherwise they are bad rows.
        sft_target: the field of an example that says which generation SFT is on (Q22).
        cut_in_place: texts are tokenised as the release does it, its conversations cut for good (Q7, Q19, Q20).
        across_epochs: limits and optimiser steps go through the rows of the whole run; otherwise epoch by epoch, and a
            limit takes the front of the unshuffled rows (Q16, Q21).
        release_schedule: the rate ticks once for every process, and PPO's is a line (Q5, Q18).
        sum_losses: a step is the sum of its losses over the release's accumulation, not their mean (Q4).
        decay_all: weight decay acts on biases and norms too (Q23).
        kl_batch: whose micro-batches KTO's KL is averaged over
            (:class:`reproalign.common.training.examples.ExampleTrainer`).
        ppo_loop: PPO steps on every micro-batch of one process, without dropout after an evaluation (Q18).
        all_dropout: every loss trains with the policy's dropout, not SFT alone (Q24).
    """

    halos: str
    any_pair: bool
    sft_target: str
    cut_in_place: bool
    across_epochs: bool
    release_schedule: bool
    sum_losses: bool
    decay_all: bool
    kl_batch: str
    ppo_loop: bool
    all_dropout: bool


PAPER = RadpoRules(
    halos="halos",
    any_pair=False,
    sft_target="sft_index",
    cut_in_place=False,
    across_epochs=False,
    release_schedule=False,
    sum_losses=False,
    decay_all=False,
    kl_batch="effective",
    ppo_loop=False,
    all_dropout=False,
)
RELEASED = RadpoRules(
    halos="halos_released",  # a line break more after the header of an answer that is asked for than before one
    any_pair=True,
    sft_target="released_sft_index",
    cut_in_place=True,
    across_epochs=True,
    release_schedule=True,
    sum_losses=True,
    decay_all=True,
    kl_batch="process",
    ppo_loop=True,
    all_dropout=True,
)


def rules_of(variant: str) -> RadpoRules:
    """Return the rules of a variant, see :func:`~reproalign.common.options.shared.by_variant`."""
    return by_variant(variant, paper=PAPER, released=RELEASED)
