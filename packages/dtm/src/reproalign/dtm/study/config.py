"""Options of ``dtm evaluate`` and of the kinds of ``dtm study``."""

from __future__ import annotations

from dataclasses import dataclass, field

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
