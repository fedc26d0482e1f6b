"""The keys of ``ama average``. ``null``: not set; what it stands for is said with the key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING


@dataclass
class AverageConfig:
    """``ama average``: a model between the one before RLHF and the one after (arXiv 2309.06256, Sections 4 to 6)."""

    output_dir: str = MISSING
    pre: str = MISSING  # θ_0, before RLHF: folder or Hub id; adapters too, or MODEL+ADAPTER
    post: str | None = None  # θ, after RLHF; not for method=sma
    variant: str = "paper"  # paper (float32, rounded once) | released (bfloat16, every product and sum rounded)
    method: str = (
        "ma"  # ma (averages) | graft (the largest changes of θ, else θ_0) | sma (moving average of checkpoints)
    )
    alpha: float | None = (
        None  # α, base ratio, 0 to 1; null: 0.2 on pre; of a list of ratios: their mean; of a file: its
    )
    alpha_on: str = "pre"  # alpha, ratios and pattern multiply pre (the plots, the release) | post (the formulas)
    parts: str | None = (
        # block3 | lblock3 | paper3 | blockN | evenN | 7#16 | layerwise | linearwise; null: one part, or of ratios, only
        None  # and pattern: paper: paper3, released: block3; of a file of ratios: the file's
    )
    ratios: Any = (
        None  # [0.4,0.3,0.2]: a ratio for each part, or a run of `ama adapt`, its ratios.json, or mask_alphas.bin
    )
    only: str | None = None  # average this part alone, the others stay θ: input | middle | output, or a group's name
    pattern: list[float] | None = None  # [0,-0.1,-0.1]: what is added to alpha in each part
    name: str | None = None  # the release's: pma_0.2_tag_split|10#20|0.4|0.3|0.2_tag, or ma_0.2_tag_tag
    tensors: str | None = (
        # released_ma (all) | linear_head_pre | linear_head_post (linear layers and head; the rest pre or post); null:
        None  # paper: linear_head_post; released: released_ma, of learned ratios linear_head_pre; of a file: the file's
    )
    head: str | None = (
        # base (α) | learned (lblock3's own ratio) | post; null: learned if it has one, else base; of one part: post; of
        None  # a file: the file's; released: base
    )
    fraction: float | None = None  # graft: share of all entries that are θ's, above 0, at most 1
    checkpoints: list[str] | None = None  # sma: models of the training, the earliest first
    decay: float | None = None  # sma: μ of m ← μ m + (1 - μ) θ_t from m = θ_0, 0 to below 1
    reset_every: int | None = None  # sma: m starts at θ_0 again after so many checkpoints, at least 1; null: never
    norms: bool = False  # also measure ‖θ - θ_0‖ / ‖θ_0‖ of each part: reads both models once more
    allow: list[str] | None = (
        # extrapolation (ratios outside 0 to 1) | bin (pickled files), and as `reproalign merge`: tokenizer |
        None  # chat_template | config | extra_tensors
    )
    dtype: str | None = (
        None  # of the output: auto (as pre) | float32 | bfloat16 | float16; null: paper: auto, released: bfloat16
    )
    accumulate: str | None = None  # arithmetic of variant=paper in float32 (null) | float64
    embeddings: str | None = None  # unequal numbers of rows: refuse (null) | crop | pad
    tied: str | None = None  # head of tied models: keep (null) | untie (write it as a tensor of its own)
    files_from: str | None = None  # model whose config, tokenizer and generation files are copied; null: pre
    shard_size: str = "5GB"  # largest file of the output
    threads: int | None = None  # null: one for each core, 16 at most
    verify: str = "auto"  # headers | load (from_pretrained on the CPU) | auto: load below 4 GB
    resume: str = "auto"  # auto: keep the finished files of an interrupted run | never: refuse its folder
