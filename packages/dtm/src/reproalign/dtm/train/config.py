"""Options of ``dtm train``. ``ERRATA.md`` says where ``variant=paper`` and ``released`` differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reproalign.common.config.model import LogprobsConfig
from reproalign.common.config.run import BaseRunConfig
from reproalign.common.options import option, section, seed, variant
from reproalign.dtm.tokens import TokensConfig


@dataclass
class RegularizerConfig:
    """What is added to the loss so that the model stays near its base: the baselines L2-norm and EWC."""

    name: str = option(
        "none",
        help="the baselines L2-norm and EWC; Δθ: what training adds to the base",
        choices={"none": "", "l2": "weight · ‖Δθ‖²", "ewc": "weight / 2 · Σ F Δθ²"},
    )
    weight: float | None = option(
        None, help="λ; not published, so it has to be given", above=0, null="none, for name=none"
    )
    fisher: str | None = option(
        None,
        help="ewc: diagonal Fisher information of the base, a folder or file of `dtm statistics`",
        null="none, for other names",
    )


@dataclass
class ReplayConfig:
    """Pre-training texts mixed with the instruction rows, trained on from the first token to the last (Replay)."""

    path: str | None = option(
        None, help="a file of texts: .jsonl, .json, .jsonl.gz, .parquet", null="replay.name, or no replay"
    )
    name: str | None = option(
        None, help="or a Hub data set, e.g. togethercomputer/RedPajama-Data-1T-Sample", null="no replay"
    )
    config_name: str | None = option(None, help="configuration of the Hub data set", null="its default")
    split: str = option("train", help="split of the Hub data set")
    revision: str | None = option(None, help="branch, tag or commit of the Hub data set", null="its default branch")
    column: str = option("text", help="column that holds the text")
    ratio: float = option(1.0, help="texts per instruction row; the paper's: 1", above=0)


@dataclass
class FilterConfig:
    """Only rows whose score is high enough are trained on (Deita)."""

    column: str | None = option(
        None, help="column of the rows that holds the score", null="filter.scores, or no filter"
    )
    scores: list[str] = option([], help="JSON arrays of scores, one for each file of rows")
    above: float = option(2.5, help="rows with a higher score are kept")


@dataclass
class TrainConfig(BaseRunConfig):
    """``dtm train``: one model on one cluster, on several, or on all rows."""

    variant: str = variant(help="tokens, loss and evaluation")
    dispersal: str | None = option(
        None, help="folder of a `dtm disperse` run: its rows, labels and held-out rows", null="rows is given instead"
    )
    rows: list[str] = option([], help="or files of instruction rows; a,b in one entry are two files")
    labels: list[str] = option([], help="their label files, JSON arrays; not needed without cluster")
    cluster: str | None = option(None, help='id of the cluster, or several: "0+2"', null="all rows (vanilla)")
    data_ratio: float = option(1.0, help="share of the selected, shuffled rows that is trained on", above=0, at_most=1)
    held_out: list[str] = option(
        [], help="rows that are measured at the end; none: those of the dispersal if trainer.eval_strategy is set"
    )
    init_seed: int = seed(
        42, help="of the adapters' first weights: one for all sub-models, so that their factors can be averaged"
    )
    normalisation: str | None = option(
        None,
        help="what the loss of a step is the mean of",
        choices={"micro_batch_mean": "released", "token_mean": "paper"},
        null="by the variant",
    )
    tokens: TokensConfig = section(TokensConfig)
    logprobs: LogprobsConfig = section(LogprobsConfig)
    regularizer: RegularizerConfig = section(RegularizerConfig)
    replay: ReplayConfig = section(ReplayConfig)
    filter: FilterConfig = section(FilterConfig)


@dataclass
class TrainEachConfig(TrainConfig):
    """``dtm train clusters=…`` or ``variations=…``: several models, each a run of its own below this one."""

    clusters: str | None = option(
        None, help='all, or ids: "0+2"; a sub-model is trained on each', null="variations is given instead"
    )
    variations: list[dict[str, Any]] = option([], help="or keys to change for each model (uniform soup)")
    at_once: int | None = option(
        None, help="children that run at the same time", at_least=1, null="as many as the GPUs hold, without GPUs one"
    )
