"""Options of ``dtm evaluate`` and of the kinds of ``dtm study``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reproalign.common.config.launch import LaunchConfig
from reproalign.common.config.model import LoadedModelConfig, LogprobsConfig, ModelConfig
from reproalign.common.options import option, output_dir, section, seed, variant
from reproalign.dtm.tokens import TokensConfig


@dataclass
class EvaluateConfig:
    """``evaluate``: the loss of held-out responses, overall and by source."""

    output_dir: str = output_dir()
    seed: int = seed(help="seed of the sample and of the bootstrap")
    variant: str = variant(help="of the tokens and of the accuracy; released counts prompt and padding positions")
    rows: list[str] = option(help="files of instruction rows, e.g. [runs/disperse/held_out.jsonl]")
    sample: int | None = option(
        None, help="so many of the rows, drawn at random by the seed, in their order", at_least=1, null="all"
    )
    model: LoadedModelConfig = section(LoadedModelConfig, help="weights, an adapter's folder, or an ensemble's")
    tokens: TokensConfig = section(TokensConfig)
    batch_size: int = option(8, help="rows per forward in each process", at_least=1)
    confidence: float = option(0.95, help="of the bootstrap intervals over rows", above=0, below=1)
    resamples: int = option(2000, help="of the bootstrap", at_least=100)
    per_token: bool = option(
        False, help="also write tokens.safetensors: ids and losses of every token, which two studies need"
    )
    logprobs: LogprobsConfig = section(LogprobsConfig)
    launch: LaunchConfig = section(LaunchConfig, help="single, or ddp: the rows are shared")


@dataclass
class ClaimsConfig:
    """``study claims``: the paper's claims on its own numbers, and on a set of results."""

    output_dir: str = output_dir()
    results: str | None = option(
        None,
        help="CSV or JSON: a row for each method, a column for each benchmark (docs/study.md)",
        null="the paper alone, or runs",
    )
    runs: dict[str, str] = option({}, help="method -> folder of `dtm evaluate suite=dtm`")
    curves: str | None = option(
        None, help="folder of `dtm study curves`, for the claim that late fine-tuning hurts", null="none"
    )
    claims: list[str] | None = option(
        None, help="names in paper.yaml, which the results must suffice for", null="all that they do"
    )
    tolerance: float = option(
        0.5, help="points by which a base row may differ for the suite to be called the paper's", at_least=0
    )


@dataclass
class GapConfig:
    """``study gap``: ΔL_train / ΔL_val along the training."""

    output_dir: str = output_dir()
    training: list[str] = option(
        help="folders of `dtm evaluate` on one sample of the training rows: base model, checkpoints"
    )
    held_out: list[str] = option(help="likewise on held-out rows, of the same models in the same order")
    fractions: list[float] = option(
        help="of the data that each checkpoint has seen, ascending; base left out", above=0, at_most=1
    )
    mode: str = option(
        "incremental",
        help="against what losses are compared",
        choices={"incremental": "the checkpoint before", "cumulative": "the base model"},
    )


@dataclass
class TokensStudyConfig:
    """``study tokens``: which tokens lose most loss early in the training, and which late."""

    output_dir: str = output_dir()
    early: list[str] = option(help="two folders of `dtm evaluate per_token=true`: before and after the early stage")
    late: list[str] = option(help="likewise of the late stage, on the same rows")
    min_count: int = option(20, help="tokens that are seldomer the target are left out", at_least=1)
    top: int = option(25, help="tokens listed for each stage, as in the paper's figure", at_least=1)
    tokenizer: str | None = option(None, help="Hub id or folder, to write the tokens out", null="the evaluated model's")


@dataclass
class ErrorsConfig:
    """``study errors``: what sub-models get wrong together and alone, and what of it the merged model corrects."""

    output_dir: str = output_dir()
    models: list[str] = option(
        help="folders of the sub-models' evaluations: suites with suite.samples=true, or of rows"
    )
    merged: str = option(help="folder of the merged model's evaluation on the same items")
    tasks: list[str] | None = option(None, help="of a suite's samples", null="all that are scored right or wrong")
    metric: str | None = option(
        None, help="of a suite's samples, e.g. acc", null="a task's first of exact_match, acc, pass@1, em"
    )
    rule: str | None = option(
        None,
        help="when a row is an error",
        choices={"accuracy": "below threshold", "loss": "above base's"},
        null="none, for suites",
    )
    threshold: float = option(
        0.5, help="of rule=accuracy: share of a row's tokens that greedy decoding hits", above=0, at_most=1
    )
    base: str | None = option(
        None, help="folder of the base model's evaluation, for rule=loss", null="none, for other rules"
    )


@dataclass
class CurvesConfig:
    """``study curves``: scores and held-out loss against the fraction of the data that was trained on."""

    output_dir: str = output_dir()
    runs: list[str] | None = option(
        None, help="folders of `dtm evaluate` (of rows, or suite=dtm)", null="train and evaluate here"
    )
    at: list[float] | None = option(
        None,
        help="for each of runs the fraction of its model; 0: the base model",
        at_least=0,
        at_most=1,
        null="none, without runs",
    )
    seed: int = seed(help="seed of every child")
    variant: str = variant(help="released: of every child that knows the two")
    model: ModelConfig = section(ModelConfig, help="the base that every training starts from")
    fractions: list[float] = option([0.2, 0.4, 0.6, 0.8, 1.0], help="ascending", above=0, at_most=1)
    train: dict[str, Any] = option({}, help="keys of `train`, e.g. train.dispersal=runs/disperse")
    evaluate: dict[str, Any] = option({}, help="keys of `evaluate`; rows: those held out by the dispersal")
    evaluate_on: str | None = option(
        None, help="a suite of benchmarks to evaluate on too: dtm, or any that `evaluate suite=` knows", null="none"
    )
    benchmarks: dict[str, Any] = option({}, help="keys of `evaluate suite=…`, e.g. benchmarks.suite.limit=100")
