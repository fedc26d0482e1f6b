"""The keys of ``ama average``. ``null``: not set; what it stands for is said with the key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reproalign.common.merging.config import DIFFERENCES, MergeConfig
from reproalign.common.options import like, option, output_dir, variant

TENSORS = {
    "released_ma": "all",
    "linear_head_pre": "linear layers and head; the rest is pre's",
    "linear_head_post": "linear layers and head; the rest is post's",
}
HEADS = {"base": "α", "learned": "lblock3's own ratio", "post": "as in post"}


@dataclass
class AverageConfig:
    """``ama average``: a model between the one before RLHF and the one after (arXiv 2309.06256, Sections 4 to 6)."""

    output_dir: str = output_dir()
    pre: str = option(help="θ_0, before RLHF: folder or Hub id; adapters too, or MODEL+ADAPTER")
    post: str | None = option(None, help="θ, after RLHF", null="none, for method=sma")
    variant: str = variant(help="paper: float32, rounded once; released: bfloat16, every product and sum rounded")
    method: str = option(
        "ma",
        help="how the two are combined",
        choices={
            "ma": "averages",
            "graft": "the largest changes of θ, otherwise θ_0",
            "sma": "moving average of checkpoints",
        },
    )
    alpha: float | None = option(
        None, help="base ratio", null="0.2 on pre; of a list of ratios: their mean; of a file: the file's"
    )
    alpha_on: str = option(
        "pre",
        help="what alpha, ratios and pattern multiply",
        choices={"pre": "the plots, the release", "post": "the formulas"},
    )
    parts: str | None = option(
        None,
        help="block3, lblock3, paper3, blockN, evenN, 7#16, layerwise or linearwise",
        null="one part; of ratios, only and pattern: paper3 (released: block3); of a file: the file's",
    )
    ratios: Any = option(
        None,
        help="[0.4,0.3,0.2]: a ratio for each part, or a run of `ama adapt`, its ratios.json, or mask_alphas.bin",
        types=(list, str),
        null="alpha everywhere",
    )
    only: str | None = option(
        None,
        help="average this part alone, the others stay θ: input, middle or output, or a group's name",
        null="all parts",
    )
    pattern: list[float] | None = option(
        None, help="[0,-0.1,-0.1]: what is added to alpha in each part", null="nothing"
    )
    name: str | None = option(
        None, help="the release's: pma_0.2_tag_split|10#20|0.4|0.3|0.2_tag, or ma_0.2_tag_tag", null="none"
    )
    tensors: str | None = option(
        None,
        help="which tensors are averaged",
        choices=TENSORS,
        null="linear_head_post; released: released_ma, of learned ratios linear_head_pre; of a file: the file's",
    )
    head: str | None = option(
        None,
        help="ratio of the head",
        choices=HEADS,
        null="learned if there is one, otherwise base; of one part: post; of a file: the file's; released: base",
    )
    fraction: float | None = option(
        None, help="graft: share of all entries that are θ's", above=0, at_most=1, null="none, for other methods"
    )
    checkpoints: list[str] | None = option(
        None, help="sma: models of the training, the earliest first", null="none, for other methods"
    )
    decay: float | None = option(
        None, help="sma: μ of m ← μ m + (1 - μ) θ_t from m = θ_0", at_least=0, below=1, null="none, for other methods"
    )
    reset_every: int | None = option(
        None, help="sma: m starts at θ_0 again after so many checkpoints", at_least=1, null="never"
    )
    norms: bool = option(False, help="also measure ‖θ - θ_0‖ / ‖θ_0‖ of each part: reads both models once more")
    allow: list[str] | None = option(
        None,
        help="what is accepted, with a note",
        choices={
            "extrapolation": "ratios outside 0 to 1",
            **dict.fromkeys(DIFFERENCES, ""),
            "bin": "pickled files",
        },
        null="nothing",
    )
    dtype: str | None = like(MergeConfig, "dtype", None, null="paper: auto, as pre; released: bfloat16")
    accumulate: str | None = option(
        None, help="precision of the arithmetic of variant=paper", choices=("float32", "float64"), null="float32"
    )
    embeddings: str | None = like(MergeConfig, "embeddings", None)
    tied: str | None = like(MergeConfig, "tied", None)
    files_from: str | None = like(MergeConfig, "files_from", None, null="pre")
    shard_size: str = like(MergeConfig, "shard_size", "5GB")
    threads: int | None = like(MergeConfig, "threads", None)
    verify: str = like(MergeConfig, "verify", "auto")
    resume: str = like(MergeConfig, "resume", "auto")
