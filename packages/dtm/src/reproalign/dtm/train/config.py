"""Options of ``dtm train``. ``ERRATA.md`` says where ``variant=paper`` and ``released`` differ."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from reproalign.common.config import BaseRunConfig, LogprobsConfig
from reproalign.dtm.tokens import TokensConfig


@dataclass
class RegularizerConfig:
    """What is added to the loss so that the model stays near its base: the baselines L2-norm and EWC."""

    name: str = "none"  # none | l2 (weight · ‖Δθ‖²) | ewc (weight / 2 · Σ F Δθ²); Δθ: what training adds to the base
    weight: float | None = None  # λ, above 0; not published, so it has to be given
    fisher: str | None = None  # ewc: diagonal Fisher information of the base, a folder or file of `dtm statistics`


@dataclass
class ReplayConfig:
    """Pre-training texts mixed with the instruction rows, trained on from the first token to the last (Replay)."""

    path: str | None = None  # a file of texts: .jsonl, .json, .jsonl.gz, .parquet
    name: str | None = None  # or a Hub data set, e.g. togethercomputer/RedPajama-Data-1T-Sample; null: no replay
    config_name: str | None = None  # of the Hub data set
    split: str = "train"  # of the Hub data set
    revision: str | None = None  # of the Hub data set
    column: str = "text"  # that holds the text
    ratio: float = 1.0  # texts per instruction row, above 0; the paper's: 1


@dataclass
class FilterConfig:
    """Only rows whose score is high enough are trained on (Deita)."""

    column: str | None = None  # column of the rows that holds the score; null: filter.scores, or no filter
    scores: list[str] = field(default_factory=list)  # JSON arrays of scores, one for each file of rows
    above: float = 2.5  # rows with a higher score are kept


@dataclass
class TrainConfig(BaseRunConfig):
    """``dtm train``: one model on one cluster, on several, or on all rows."""

    variant: str = "paper"  # paper | released: tokens, loss and evaluation
    dispersal: str | None = None  # folder of a `dtm disperse` run: its rows, labels and held-out rows
    rows: list[str] = field(default_factory=list)  # or files of instruction rows; a,b in one entry are two files
    labels: list[str] = field(default_factory=list)  # their label files, JSON arrays; not needed without cluster
    cluster: str | None = None  # id of the cluster, or several: "0+2"; null: all rows (vanilla)
    data_ratio: float = 1.0  # share of the selected, shuffled rows that is trained on, in (0, 1]
    held_out: list[str] = field(
        default_factory=list
    )  # rows that are measured at the end; none: those of the dispersal if trainer.eval_strategy is set
    init_seed: int = 42  # of the adapters' first weights: one for all sub-models, so that their factors can be averaged
    normalisation: str | None = None  # of the loss: micro_batch_mean (released) | token_mean (paper); null: by variant
    tokens: TokensConfig = field(default_factory=TokensConfig)
    logprobs: LogprobsConfig = field(default_factory=LogprobsConfig)
    regularizer: RegularizerConfig = field(default_factory=RegularizerConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    filter: FilterConfig = field(default_factory=FilterConfig)


@dataclass
class TrainEachConfig(TrainConfig):
    """``dtm train clusters=…`` or ``variations=…``: several models, each a run of its own below this one."""

    clusters: str | None = None  # all, or ids: "0+2"; a sub-model is trained on each
    variations: list[dict[str, Any]] = field(default_factory=list)  # or keys to change for each model (uniform soup)
    at_once: int | None = None  # children that run at the same time; null: as many as the GPUs hold, without GPUs one
