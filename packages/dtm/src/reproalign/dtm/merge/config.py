"""The keys of ``dtm merge`` and ``dtm statistics``. ``null``: not set; what it stands for is said with the key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reproalign.common.config.model import LoadedModelConfig
from reproalign.common.merging.config import DIFFERENCES, STATISTICS
from reproalign.common.merging.config import MergeConfig as CoreConfig
from reproalign.common.options import like, option, output_dir, section, seed, variant
from reproalign.common.options.shared import GO_ON
from reproalign.dtm.tokens import TokensConfig

AGGREGATIONS = ("mean", "sum", "median", "magnitude", "weighted")  # of all entries
DISJOINT = ("dis-mean", "dis-sum", "dis-max")  # of those that agree with the elected sign


@dataclass
class MergeConfig:
    """``dtm merge``: one model from sub-models (arXiv 2405.13432, Section 3)."""

    output_dir: str = output_dir()
    seed: int = seed(help="seed of DARE's masks")
    variant: str = variant(
        help="paper: the equation on weights; released: basic_merge.py, factors, float32 coefficients"
    )
    models: Any = option(
        help="folder of `dtm train clusters=all`, or [A,B,…]: run, model or adapter folders, adapter files",
        types=(str, list),
    )
    weights: Any = option(
        None,
        help='α: [1,1,2] or "1,1,2", one for each; shares of one (task_arithmetic, ties: as they are)',
        types=(list, str),
        null="1 for each",
    )
    method: str = option(
        "average",
        help="how models are combined; ensemble: of logits",
        choices=("average", "task_arithmetic", "ties", "dare", "fisher", "regmean", "ensemble"),
    )
    space: str | None = option(
        None,
        help="what of adapters is combined",
        choices={"factor": "A and B", "delta": "B A", "full": "weights"},
        null="released: factor, paper: delta, full",
    )
    output: str | None = option(
        None, help="what is written", choices=("adapter", "model"), null="adapter if adapters stay one, otherwise model"
    )
    rank: int | None = like(CoreConfig, "rank", None)
    base: str | None = option(None, help="θ_0: folder or Hub id", null="what the adapters name")
    initial: str | None = option(
        None,
        help="task_arithmetic, ties, dare: θ_0 of the factors, the adapter at step 0",
        null="0",
        variant="released",
    )
    aggregation: str | None = option(
        None,
        help="how entries are put together; dis-*: ties",
        choices=(*AGGREGATIONS, *DISJOINT),
        null="average: weighted, ties: dis-mean",
        variant="released",
    )
    scale: float | None = option(None, help="λ of task vectors; task_arithmetic: must be set", null="ties, dare: 1")
    density: float | None = like(
        CoreConfig, "density", None, help="ties: share of each task vector that is kept", null="0.2"
    )
    norm_fraction: float | None = option(
        None,
        help="ties, instead of density: keep this share of the squared norm",
        above=0,
        at_most=1,
        null="density",
        variant="released",
    )
    zero_signs: str | None = option(
        None,
        help="ties: which sign entries whose sum is 0 take",
        choices=("majority", "minority"),
        null="majority",
        variant="released",
    )
    trim_scope: str | None = option(
        None,
        help="ties: largest entries of what are kept",
        choices={"model": "the whole model", "tensor": "each tensor"},
        null="model",
        variant="paper",
    )
    drop: float | None = option(
        None, help="dare: p, probability that an entry is dropped", at_least=0, below=1, null="0.9"
    )
    normalize: bool | None = option(None, help="dare: weights as shares of one", null="true, an average")
    statistics: Any = option(
        None,
        help="fisher, regmean: a folder or file for each model; auto: from each model's own rows",
        types=(list, str),
        null="none, for other methods",
    )
    statistics_rows: int | None = option(
        None, help="statistics=auto: rows of each cluster, the first after the shuffle", at_least=1, null="1000"
    )
    floor: float | None = like(CoreConfig, "floor", None)
    off_diagonal: float | None = like(CoreConfig, "off_diagonal", None)
    allow_extrapolation: bool = option(False, help="accept negative weights where they are shares")
    allow: list[str] | None = option(
        None,
        help="differences to accept, as `reproalign merge`",
        choices=DIFFERENCES,
        null="none",
    )
    dtype: str | None = like(CoreConfig, "dtype", None, help="of a merged model")
    accumulate: str | None = option(
        None, help="precision of the arithmetic", choices=("float32", "float64"), null="float32"
    )
    shard_size: str = like(CoreConfig, "shard_size", "5GB", help="largest file of a merged model")
    threads: int | None = like(CoreConfig, "threads", None)
    verify: str = like(CoreConfig, "verify", "auto")
    resume: str = like(CoreConfig, "resume", "auto")


@dataclass
class StatisticsConfig:
    """``dtm statistics``: what Fisher merging, RegMean and EWC read, measured for one model on instruction rows."""

    output_dir: str = output_dir()
    seed: int = seed(help="seed of the shuffle, of which the first rows are taken")
    resume: str = option("auto", **GO_ON)
    kind: str = option("fisher", help="what is measured", choices=STATISTICS)
    model: LoadedModelConfig = section(LoadedModelConfig, help="adapters are folded in")
    variant: str = variant(help="of the tokens")
    dispersal: str | None = option(None, help="folder of a `dtm disperse` run", null="rows is given instead")
    rows: list[str] = option([], help="or files of instruction rows")
    labels: list[str] = option([], help="their label files; not needed without cluster")
    cluster: str | None = option(None, help='id of the cluster, or several: "0+2"', null="all rows")
    data_ratio: float = option(1.0, help="share of the selected, shuffled rows that counts", above=0, at_most=1)
    max_rows: int | None = option(1000, help="the first so many of them", at_least=1, null="all")
    tokens: TokensConfig = section(TokensConfig)
    targets: str = option(
        "data", help="fisher: y", choices={"data": "the row's own", "model": "the model's likeliest tokens"}
    )
    tensors: list[str] | None = option(
        None, help="patterns of names, e.g. [*.mlp.*]", null="what the adapter changes, or all"
    )
    memory: str = option("8GB", help="of sums at once; with less than they need, the rows are read several times")
