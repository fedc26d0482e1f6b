"""What the paper and its release do differently, as one table of rules that a run chooses once.

Names in brackets are rows of ``ERRATA.md``. How the release selects and records responses is in
:mod:`reproalign.ama.align.reward_record`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reproalign.common.options.shared import by_variant


@dataclass(frozen=True)
class AmaRules:
    """One variant of AMA.

    Attributes:
        trained_prompts: ``ama data`` divides as published, with evaluation prompts of rows that SFT and the reward
            model are trained on (A10).
        normalisation: what null stands for in ``normalisation`` of SFT (as DTM's, whose loss it is).
        blocks: SFT is on packed blocks, unless ``packing`` is set (Q27).
        penalty: what null stands for in ``penalty.*``; ``scale`` by ``penalty.name`` (Q35, Q36).
        dealt: rejection sampling deals the prompts to ``ranks`` processes, which go over them once (Q26).
        seed_step: between the seeds of two iterations (A8).
        raft_lengths: what null stands for in ``min_new_tokens`` and ``max_new_tokens`` of ``align raft`` (Q25).
        min_reward: the same of ``min_reward`` (Q24).
        unseparated: responses follow the header of a transcript directly where nothing else is said (A9).
        eval_lengths: as ``raft_lengths``, of ``ama evaluate`` (Q29).
        cleaned: ``ama evaluate`` cleans responses, and counts those that LMFlow's rules discard (Q23).
        tensors: what null stands for in ``tensors`` of an average (E4).
        learned_tensors: the same for learned ratios, whose merge is another script of the release (Q19).
        learned_head: the head has the ratio that was learned for it, if there is one (Q18).
        parts: what null stands for in ``parts`` of an average with several ratios (E5).
        graft: there is ``method=graft`` (Q37).
        release_names: ``name`` is read as the release reads it (Q20).
        dtype: what null stands for in ``dtype`` of an average (Q21).
        rounds_steps: every product and sum of an average is rounded to its dtype, as are learned ratios (Q21).
        release_loop: ratios are learned by the release's loop: a stale copy in bfloat16, steps repeated and gradients
            kept (Q2, Q3, Q5, A3, A12, A13).
        release_parts: levels group layers as in the release, which leaves some out (Q10, Q11).
        published: what null stands for in ``published.*`` (Q4, Q28).
        loss_on: the same of ``loss_on`` of ``ama adapt`` (Q27).
        regularizer: the same of ``regularizer``.
        reg_alpha: the same of ``reg_alpha``.
        reg_reduction: the same of ``reg_reduction`` (Q9).
    """

    trained_prompts: bool
    normalisation: str
    blocks: bool
    penalty: Mapping[str, Any]
    dealt: bool
    seed_step: int
    raft_lengths: tuple[int | None, int]
    min_reward: float | None
    unseparated: bool
    eval_lengths: tuple[int | None, int]
    cleaned: bool
    tensors: str
    learned_tensors: str
    learned_head: bool
    parts: str
    graft: bool
    release_names: bool
    dtype: str | None
    rounds_steps: bool
    release_loop: bool
    release_parts: bool
    published: Mapping[str, Any]
    loss_on: str
    regularizer: str | None
    reg_alpha: float
    reg_reduction: str


PAPER = AmaRules(
    trained_prompts=False,
    normalisation="token_mean",
    blocks=False,
    penalty={
        "scale": {"l1": 1.0, "l2": 1.0},
        "mean": False,
        "squared": False,
        "distance": "mse",
        "reduction": "token",
    },
    dealt=False,
    seed_step=1,
    raft_lengths=(None, 196),  # of Table 2's test sampling; of the training's the paper says nothing
    min_reward=None,
    unseparated=False,
    eval_lengths=(None, 196),  # Tables 2 and 3
    cleaned=False,
    tensors="linear_head_post",
    learned_tensors="linear_head_post",
    learned_head=True,
    parts="paper3",
    graft=True,
    release_names=False,
    dtype=None,
    rounds_steps=False,
    release_loop=False,
    release_parts=False,
    published={"schedule": "cosine", "warmup_ratio": 0.03, "batch_size": 1, "weight_decay": 0.0},
    loss_on="response",
    regularizer=None,
    reg_alpha=0.0,
    reg_reduction="group",
)
RELEASED = AmaRules(
    trained_prompts=True,
    normalisation="micro_batch_mean",
    blocks=True,
    penalty={
        "scale": {"l1": 1e5, "l2": 1e9},
        "mean": True,
        "squared": True,
        "distance": "kl",
        "reduction": "row",
    },
    dealt=True,
    seed_step=0,
    raft_lengths=(64, 128),  # half open, as the next ones
    min_reward=-1000.0,
    unseparated=True,
    eval_lengths=(127, 129),
    cleaned=True,
    tensors="released_ma",
    learned_tensors="linear_head_pre",
    learned_head=False,
    parts="block3",
    graft=False,
    release_names=True,
    dtype="bfloat16",
    rounds_steps=True,
    release_loop=True,
    release_parts=True,
    published={"schedule": "linear", "warmup_ratio": 0.0, "batch_size": 2, "weight_decay": 0.01},
    loss_on="all",
    regularizer="0.2",
    reg_alpha=1e-4,
    reg_reduction="linear",
)


def rules_of(variant: str) -> AmaRules:
    """Return the rules of a variant, see :func:`~reproalign.common.options.shared.by_variant`."""
    return by_variant(variant, paper=PAPER, released=RELEASED)
