"""The keys of ``dtm merge`` and ``dtm statistics``. ``null``: not set; what it stands for is said with the key."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from reproalign.common.config import ModelConfig
from reproalign.dtm.tokens import TokensConfig


@dataclass
class MergeConfig:
    """``dtm merge``: one model from sub-models (arXiv 2405.13432, Section 3)."""

    output_dir: str = MISSING
    seed: int = 42  # of DARE's masks
    variant: str = "paper"  # paper (the equation on weights) | released (basic_merge.py: factors, float32 coefficients)
    models: Any = (
        MISSING  # folder of `dtm train clusters=all`, or [A,B,…]: run, model or adapter folders, adapter files
    )
    weights: Any = (
        None  # α: [1,1,2] or "1,1,2", one for each; shares of one (task_arithmetic, ties: as they are); null: 1
    )
    method: str = "average"  # average | task_arithmetic | ties | dare | fisher | regmean | ensemble (of logits)
    space: str | None = (
        None  # factor (A and B) | delta (B A) | full (weights); null: released: factor, paper: delta, full
    )
    output: str | None = None  # adapter | model; null: adapter if adapters stay one, otherwise model
    rank: int | None = (
        None  # adapter in delta space: recompress to this rank, at least 1; null: exact, sum of the ranks
    )
    base: str | None = None  # θ_0: folder or Hub id; null: what the adapters name
    initial: str | None = (
        None  # released task_arithmetic, ties, dare: θ_0 of the factors, the adapter at step 0; null: 0
    )
    aggregation: str | None = (
        None  # released; average: weighted (null) | mean | sum | median | magnitude; ties: dis-mean
    )
    #                                 (null) | dis-sum | dis-max | mean | sum | median | magnitude | weighted
    scale: float | None = None  # λ of task vectors; task_arithmetic: must be set; ties, dare: null is 1
    density: float | None = None  # ties: share of each task vector that is kept, in (0, 1]; null: 0.2
    norm_fraction: float | None = None  # released ties, instead of density: keep this share of the squared norm, (0, 1]
    zero_signs: str | None = None  # released ties: entries whose sum is 0 take the majority's sign (null) | minority
    trim_scope: str | None = None  # paper ties: largest entries of the whole model (null) | of each tensor
    drop: float | None = None  # dare: p, probability that an entry is dropped, in [0, 1); null: 0.9
    normalize: bool | None = None  # dare: weights as shares of one (null: true, an average) | as they are (false)
    statistics: Any = None  # fisher, regmean: a folder or file for each model | auto: from each model's own rows
    statistics_rows: int | None = None  # statistics=auto: rows of each cluster, the first after the shuffle; null: 1000
    floor: float | None = None  # fisher: ε > 0; null: 1e-10
    off_diagonal: float | None = None  # regmean: factor of the Gram matrices' off-diagonal, 0 to 1; null: 0.9
    allow_extrapolation: bool = False  # accept negative weights where they are shares
    allow: list[str] | None = None  # as `reproalign merge`: tokenizer | chat_template | config | extra_tensors | bin
    dtype: str | None = None  # of a merged model: auto (null, as the base's tensors) | float32 | bfloat16 | float16
    accumulate: str | None = None  # arithmetic in float32 (null) | float64
    shard_size: str = "5GB"  # largest file of a merged model
    threads: int | None = None  # null: one for each core, 16 at most
    verify: str = "auto"  # of a merged model: headers | load (from_pretrained on the CPU) | auto: load below 4 GB
    resume: str = "auto"  # auto: keep the finished files of an interrupted run | never: refuse its folder


@dataclass
class StatisticsConfig:
    """``dtm statistics``: what Fisher merging, RegMean and EWC read, measured for one model on instruction rows."""

    output_dir: str = MISSING
    seed: int = 42  # of the shuffle, of which the first rows are taken
    resume: str = "auto"  # auto: go on with an interrupted run, from its last finished file | never: refuse its folder
    kind: str = "fisher"  # fisher (mean squared gradients of log p) | gram (x xᵀ of the inputs of linear layers)
    model: ModelConfig = field(default_factory=ModelConfig)  # adapters are folded in
    variant: str = "paper"  # paper | released: of the tokens
    dispersal: str | None = None  # folder of a `dtm disperse` run
    rows: list[str] = field(default_factory=list)  # or files of instruction rows
    labels: list[str] = field(default_factory=list)  # their label files; not needed without cluster
    cluster: str | None = None  # id of the cluster, or several: "0+2"; null: all rows
    data_ratio: float = 1.0  # share of the selected, shuffled rows that counts, in (0, 1]
    max_rows: int | None = 1000  # the first so many of them; null: all
    tokens: TokensConfig = field(default_factory=TokensConfig)
    targets: str = "data"  # fisher: y is the row's own (data) | the model's likeliest tokens (model)
    tensors: list[str] | None = None  # patterns of names, e.g. [*.mlp.*]; null: what the adapter changes, or all
    memory: str = "8GB"  # of sums at once; with less than they need, the rows are read several times
