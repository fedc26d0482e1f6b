"""The keys of ``ama adapt``. ``null``: not set; what it stands for is said with the key."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from reproalign.common.config import LaunchConfig, ModelConfig
from reproalign.common.variants import of_variant


@dataclass
class PublishedConfig:
    """``solver=published``: AdamW on the raw values, as in the paper's Table 4 and the release's script."""

    learning_rate: float | None = None  # above 0; null: 2e-5 (Table 4: 2e-5 for RSF, 4e-5 for PPO and DPO)
    schedule: str | None = None  # cosine | linear | constant; null: cosine, released: linear
    warmup_ratio: float | None = None  # share of the steps, in [0, 1); null: 0.03, released: 0
    epochs: int = 1  # passes over the rows, at least 1
    batch_size: int | None = None  # rows of a step, over all processes; null: 1, released: 2
    weight_decay: float | None = None  # of AdamW, pulls sigmoids to 0.5; null: 0, released: 0.01
    processes: int = field(  # released: of the authors' launch; one saw every so many-th batch, and the first's counts
        default=1, metadata=of_variant("released")
    )
    save_steps: int = 20  # steps between two states on disk, at least 1


@dataclass
class ExactConfig:
    """``solver=exact``: the maximum on the constraint set, by SLSQP with gradients over all rows."""

    batch_size: int = 8  # rows per forward
    tolerance: float = 1e-7  # stop when the objective (nats per token) changes by less, above 0
    max_evaluations: int = 50  # passes over the rows, at least 2


@dataclass
class SearchConfig:
    """``objective=reward``: black-box search (COBYQA), every candidate averaged, sampled from and scored."""

    evaluations: int = 30  # candidates, the equal ratios among them, at least 2
    radius: float = 0.1  # first step, in units of the ratio, above 0
    tolerance: float = 0.005  # last step, in units of the ratio: below it ratios are taken as equal, above 0


@dataclass
class AdaptConfig:
    """``adapt``: a ratio for each part of the network, with a given mean (HMA; arXiv 2309.06256, Section 6)."""

    output_dir: str = MISSING
    seed: int = 42  # of the rows' order, of what is held out, and of every child run
    resume: str = "auto"  # auto: go on with an interrupted run, to the same bits | never: refuse its folder
    variant: str = (
        "paper"  # paper | released: finetune_mask.py with its optimiser, precision and order, quirks included
    )
    pre: str = MISSING  # θ_0, the model before RLHF: folder, Hub id or adapter
    post: str = MISSING  # θ, the model after RLHF
    model: ModelConfig = field(default_factory=ModelConfig)  # how they are held; model.name stays unset
    allow: list[str] = field(default_factory=list)  # differences to accept, as `reproalign merge`: tokenizer | config …
    alpha: float = 0.2  # mean ratio, strictly between 0 and 1
    alpha_on: str = "pre"  # what alpha multiplies: pre | post (the paper's formulas)
    parts: str = "block3"  # groups: block3 | lblock3 | paper3 | blockN | evenN | 7#15 | layerwise | linearwise
    tensors: str | None = None  # linear_head_post (null) | linear_head_pre (null of released) | released_ma
    head: str | None = None  # ratio of the head: base (null) | learned (null of lblock3) | post
    constraint: str = "mean"  # alpha is the mean over groups (mean), or over layers (layer_mean)
    bounds: str | None = None  # ratios stay in [0, 1] (unit) | may leave it (none); null: unit, published: none
    epsilon: Any = 0.2  # >= 0: the larger, the closer ratios stay; [0,0.1,…]: take the best by a held-out criterion
    normalisation: str = "mean"  # of the published solver: mean is alpha (mean) | as printed, their sum is alpha (sum)
    objective: str = "likelihood"  # of D_θ (likelihood) | of labelled answers (labelled, AdaMerging) | reward
    rows: str | None = None  # folder or file of `ama collect`; labelled: rows of prompt and response; reward: null
    max_rows: int | None = None  # the first so many rows; null: all
    eval_fraction: float = 0.0  # share of the rows that is held out, in [0, 1): to see the gain, to choose epsilon
    layout: str = "chat"  # chat (template) | transcript | lmflow | plain (prompt and response as they are; labelled)
    response_separator: str = "space"  # transcript, lmflow: between "Assistant:" and the response: space | none
    loss_on: str | None = None  # response (null) | all (null of released): the tokens whose likelihood counts
    packing: str | None = None  # blocks of joined rows (null of published) | none: a row by itself (null of exact)
    block_size: int = 512  # packing=blocks: tokens of a block, at least 2
    max_length: int = 1024  # packing=none: tokens of prompt and response, at least 2
    solver: str | None = None  # published | exact | search; null: published, objective=reward: search
    published: PublishedConfig = field(default_factory=PublishedConfig)
    exact: ExactConfig = field(default_factory=ExactConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    regularizer: Any = None  # l1 | l2 | affine, or the release's code (0.2); null: none, released: 0.2
    reg_alpha: float | None = None  # its weight, >= 0; null: 0, released: 1e-4
    reg_weighting: str | None = None  # none (null) | mid: the middle of the network moves least
    reg_center: int | None = None  # mid: the middle layer, from 0; null: L/2 (13 of 26); codes: 13
    reg_reduction: str | None = (
        None  # a group counts once (group, null) | once for each linear layer (linear, released)
    )
    reward: str | None = None  # reward model, for objective=reward and for choosing epsilon by it
    prompts: str | None = None  # held-out prompts that it is measured on
    average: dict[str, Any] = field(default_factory=dict)  # any key of `average` that adapt does not set
    evaluate: dict[str, Any] = field(default_factory=dict)  # any key of `evaluate` that adapt does not set
    logprobs_chunk: int | None = None  # token positions whose logits exist at once; null: chosen from the vocabulary
    launch: LaunchConfig = field(default_factory=LaunchConfig)  # single | ddp | fsdp: rows, or rows and weights, shared
