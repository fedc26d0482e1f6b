"""Options of ``dtm evaluate`` and of the kinds of ``dtm study``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from reproalign.common.config import LaunchConfig, LogprobsConfig, ModelConfig
from reproalign.dtm.tokens import TokensConfig


@dataclass
class EvaluateConfig:
    """``evaluate``: the loss of held-out responses, overall and by source."""

    output_dir: str = MISSING
    seed: int = 42  # of the sample and of the bootstrap
    variant: str = "paper"  # of the tokens and of the accuracy: paper | released (counts prompt and padding positions)
    rows: list[str] = MISSING  # files of instruction rows, e.g. [runs/disperse/held_out.jsonl]
    sample: int | None = None  # so many of the rows, drawn at random by the seed, in their order; null: all
    model: ModelConfig = field(default_factory=ModelConfig)  # weights, an adapter's folder, or an ensemble's
    tokens: TokensConfig = field(default_factory=TokensConfig)
    batch_size: int = 8  # rows per forward in each process
    confidence: float = 0.95  # of the bootstrap intervals over rows, in (0, 1)
    resamples: int = 2000  # of the bootstrap, at least 100
    per_token: bool = False  # also write tokens.safetensors: ids and losses of every token, which two studies need
    logprobs: LogprobsConfig = field(default_factory=LogprobsConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)  # single, or ddp: the rows are shared


@dataclass
class ClaimsConfig:
    """``study claims``: the paper's claims on its own numbers, and on a set of results."""

    output_dir: str = MISSING
    results: str | None = None  # CSV or JSON: a row for each method, a column for each benchmark (docs/study.md)
    runs: dict[str, str] = field(default_factory=dict)  # method -> folder of `dtm evaluate suite=dtm`
    curves: str | None = None  # folder of `dtm study curves`, for the claim that late fine-tuning hurts
    claims: list[str] | None = None  # names in paper.yaml, which the results must suffice for; null: all that they do
    tolerance: float = 0.5  # points by which a base row may differ for the suite to be called the paper's, from 0 on


@dataclass
class GapConfig:
    """``study gap``: ΔL_train / ΔL_val along the training."""

    output_dir: str = MISSING
    training: list[str] = (
        MISSING  # folders of `dtm evaluate` on one sample of the training rows: base model, checkpoints
    )
    held_out: list[str] = MISSING  # likewise on held-out rows, of the same models in the same order
    fractions: list[float] = MISSING  # of the data that each checkpoint has seen, ascending, in (0, 1]; base left out
    mode: str = "incremental"  # incremental (against the checkpoint before) | cumulative (against the base model)


@dataclass
class TokensStudyConfig:
    """``study tokens``: which tokens lose most loss early in the training, and which late."""

    output_dir: str = MISSING
    early: list[str] = MISSING  # two folders of `dtm evaluate per_token=true`: before and after the early stage
    late: list[str] = MISSING  # likewise of the late stage, on the same rows
    min_count: int = 20  # tokens that are seldomer the target are left out; at least 1
    top: int = 25  # tokens listed for each stage, as in the paper's figure; at least 1
    tokenizer: str | None = None  # Hub id or folder, to write the tokens out; null: the evaluated model's


@dataclass
class ErrorsConfig:
    """``study errors``: what sub-models get wrong together and alone, and what of it the merged model corrects."""

    output_dir: str = MISSING
    models: list[str] = MISSING  # folders of the sub-models' evaluations: suites with suite.samples=true, or of rows
    merged: str = MISSING  # folder of the merged model's evaluation on the same items
    tasks: list[str] | None = None  # of a suite's samples; null: all that are scored right or wrong
    metric: str | None = None  # of a suite's samples, e.g. acc; null: a task's first of exact_match, acc, pass@1, em
    rule: str | None = (
        None  # when a row is an error (null for suites): accuracy (below threshold) | loss (above base's)
    )
    threshold: float = 0.5  # of rule=accuracy: share of a row's tokens that greedy decoding hits, in (0, 1]
    base: str | None = None  # folder of the base model's evaluation, for rule=loss


@dataclass
class CurvesConfig:
    """``study curves``: scores and held-out loss against the fraction of the data that was trained on."""

    output_dir: str = MISSING
    runs: list[str] | None = None  # folders of `dtm evaluate` (of rows, or suite=dtm); null: train and evaluate here
    at: list[float] | None = None  # for each of runs the fraction of its model, in [0, 1]; 0: the base model
    seed: int = 42  # of every child
    variant: str = "paper"  # paper | released: of every child that knows the two
    model: ModelConfig = field(default_factory=ModelConfig)  # the base that every training starts from
    fractions: list[float] = field(default_factory=lambda: [0.2, 0.4, 0.6, 0.8, 1.0])  # ascending, in (0, 1]
    train: dict[str, Any] = field(default_factory=dict)  # keys of `train`, e.g. train.dispersal=runs/disperse
    evaluate: dict[str, Any] = field(default_factory=dict)  # keys of `evaluate`; rows: those held out by the dispersal
    evaluate_on: str | None = None  # a suite of benchmarks to evaluate on too: dtm, or any that `evaluate suite=` knows
    benchmarks: dict[str, Any] = field(
        default_factory=dict
    )  # keys of `evaluate suite=…`, e.g. benchmarks.suite.limit=100
