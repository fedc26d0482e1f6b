"""The keys of ``ama adapt``. ``null``: not set; what it stands for is said with the key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reproalign.ama.average.config import HEADS, TENSORS
from reproalign.common.config.launch import LaunchConfig
from reproalign.common.config.model import LoadedModelConfig
from reproalign.common.config.text import LAYOUTS, SEPARATORS
from reproalign.common.merging.config import DIFFERENCES
from reproalign.common.options import option, output_dir, section, seed, variant
from reproalign.common.options.shared import GO_ON

CONSTRAINTS = {"mean": "groups", "layer_mean": "layers"}
NORMALISATIONS = {"mean": "their mean is alpha", "sum": "as printed, their sum is alpha"}


@dataclass
class PublishedConfig:
    """``solver=published``: AdamW on the raw values, as in the paper's Table 4 and the release's script."""

    learning_rate: float | None = option(
        None, help="of AdamW (Table 4: 2e-5 for RSF, 4e-5 for PPO and DPO)", above=0, null="2e-5"
    )
    schedule: str | None = option(
        None, help="of the learning rate", choices=("cosine", "linear", "constant"), null="cosine, released: linear"
    )
    warmup_ratio: float | None = option(None, help="share of the steps", at_least=0, below=1, null="0.03, released: 0")
    epochs: int = option(1, help="passes over the rows", at_least=1)
    batch_size: int | None = option(None, help="rows of a step, over all processes", at_least=1, null="1, released: 2")
    weight_decay: float | None = option(
        None, help="of AdamW, pulls sigmoids to 0.5", at_least=0, null="0, released: 0.01"
    )
    processes: int = option(
        1,
        help="of the authors' launch; a process saw every so many-th batch, and the first's counts",
        at_least=1,
        variant="released",
    )
    save_steps: int = option(20, help="steps between two states on disk", at_least=1)


@dataclass
class ExactConfig:
    """``solver=exact``: the maximum on the constraint set, by SLSQP with gradients over all rows."""

    batch_size: int = option(8, help="rows per forward", at_least=1)
    tolerance: float = option(1e-7, help="stop when the objective changes by less", unit="nats per token", above=0)
    max_evaluations: int = option(50, help="passes over the rows", at_least=2)


@dataclass
class SearchConfig:
    """``objective=reward``: black-box search (COBYQA), every candidate averaged, sampled from and scored."""

    evaluations: int = option(30, help="candidates, the equal ratios among them", at_least=2)
    radius: float = option(0.1, help="first step, in units of the ratio", above=0)
    tolerance: float = option(
        0.005, help="last step, in units of the ratio: below it ratios are taken as equal", above=0
    )


@dataclass
class AdaptConfig:
    """``adapt``: a ratio for each part of the network, with a given mean (HMA; arXiv 2309.06256, Section 6)."""

    output_dir: str = output_dir()
    seed: int = seed(help="seed of the rows' order, of what is held out, and of every child run")
    resume: str = option("auto", **GO_ON)
    variant: str = variant(help="released: finetune_mask.py with its optimiser, precision and order, quirks included")
    pre: str = option(help="θ_0, the model before RLHF: folder, Hub id or adapter")
    post: str = option(help="θ, the model after RLHF")
    model: LoadedModelConfig = section(LoadedModelConfig, help="how they are held; model.name stays unset")
    allow: list[str] = option([], help="differences to accept, as `reproalign merge`", choices=DIFFERENCES)
    alpha: float = option(0.2, help="mean ratio", above=0, below=1)
    alpha_on: str = option("pre", help="what alpha multiplies", choices={"pre": "", "post": "the paper's formulas"})
    parts: str = option("block3", help="groups: block3, lblock3, paper3, blockN, evenN, 7#15, layerwise or linearwise")
    tensors: str | None = option(
        None, help="which tensors are averaged", choices=TENSORS, null="linear_head_post (released: linear_head_pre)"
    )
    head: str | None = option(None, help="ratio of the head", choices=HEADS, null="base (lblock3: learned)")
    constraint: str = option("mean", help="what alpha is the mean over", choices=CONSTRAINTS)
    bounds: str | None = option(
        None, help="where ratios stay", choices={"unit": "in [0, 1]", "none": "anywhere"}, null="unit, published: none"
    )
    epsilon: Any = option(
        0.2,
        help="the larger, the closer ratios stay; [0,0.1,…]: take the best by a held-out criterion",
        types=(float, list),
        at_least=0,
    )
    normalisation: str = option("mean", help="of the published solver", choices=NORMALISATIONS)
    objective: str = option(
        "likelihood",
        help="what is maximised",
        choices={"likelihood": "of D_θ", "labelled": "of labelled answers, AdaMerging", "reward": ""},
    )
    rows: str | None = option(
        None,
        help="folder or file of `ama collect`; labelled: rows of prompt and response",
        null="none, for objective=reward",
    )
    max_rows: int | None = option(None, help="the first so many rows", at_least=1, null="all")
    eval_fraction: float = option(
        0.0, help="share of the rows that is held out: to see the gain, to choose epsilon", at_least=0, below=1
    )
    layout: str = option(
        "chat",
        help="how a row is written; plain: prompt and response as they are (labelled)",
        choices=(*LAYOUTS, "plain"),
    )
    response_separator: str = option(
        "space", help='transcript, lmflow: between "Assistant:" and the response', choices=SEPARATORS
    )
    loss_on: str | None = option(
        None, help="the tokens whose likelihood counts", choices=("response", "all"), null="response (released: all)"
    )
    packing: str | None = option(
        None,
        help="how rows are made",
        choices={"blocks": "joined and cut", "none": "a row by itself"},
        null="published: blocks, exact: none",
    )
    block_size: int = option(512, help="packing=blocks: of a block", unit="tokens", at_least=2)
    max_length: int = option(1024, help="packing=none: of prompt and response", unit="tokens", at_least=2)
    solver: str | None = option(
        None,
        help="how the ratios are found",
        choices=("published", "exact", "search"),
        null="published, objective=reward: search",
    )
    published: PublishedConfig = section(PublishedConfig)
    exact: ExactConfig = section(ExactConfig)
    search: SearchConfig = section(SearchConfig)
    regularizer: Any = option(
        None, help="l1, l2 or affine, or the release's code (0.2)", types=(float, str), null="none, released: 0.2"
    )
    reg_alpha: float | None = option(None, help="its weight", at_least=0, null="0, released: 1e-4")
    reg_weighting: str | None = option(
        None,
        help="how groups are weighted in it",
        choices={"none": "", "mid": "the middle of the network moves least"},
        null="none",
    )
    reg_center: int | None = option(
        None, help="mid: the middle layer, from 0", at_least=0, null="L/2 (13 of 26); codes: 13"
    )
    reg_reduction: str | None = option(
        None,
        help="how often a group counts",
        choices={"group": "once", "linear": "once for each linear layer"},
        null="group (released: linear)",
    )
    reward: str | None = option(
        None, help="reward model, for objective=reward and for choosing epsilon by it", null="none"
    )
    prompts: str | None = option(None, help="held-out prompts that it is measured on", null="none")
    average: dict[str, Any] = option({}, help="any key of `average` that adapt does not set")
    evaluate: dict[str, Any] = option({}, help="any key of `evaluate` that adapt does not set")
    logprobs_chunk: int | None = option(
        None, help="token positions whose logits exist at once", at_least=1, null="chosen from the vocabulary's size"
    )
    launch: LaunchConfig = section(LaunchConfig, help="single | ddp | fsdp: rows, or rows and weights, shared")
