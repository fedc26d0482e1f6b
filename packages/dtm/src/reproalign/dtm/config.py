"""Options of ``dtm run``; those of the single verbs are in ``disperse/``, ``train/``, ``merge/`` and ``study/``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from reproalign.common.config import ModelConfig


@dataclass
class RunConfig:
    """``dtm run``: disperse, train, merge and evaluate, each as a run of its own below this one."""

    output_dir: str = MISSING
    seed: int = 42  # of every child
    variant: str = "paper"  # paper | released: of every child that knows the two
    model: ModelConfig = field(default_factory=ModelConfig)  # the base that every training starts from
    disperse: dict[str, Any] = field(default_factory=dict)  # any key of `disperse` that run does not set
    train: dict[str, Any] = field(default_factory=dict)  # likewise of `train`: of the sub-models and of what is beside
    vanilla: bool = True  # train one model on all rows beside
    beside: dict[str, Any] = field(
        default_factory=dict
    )  # further trainings on all rows: name -> keys of `train`, e.g. beside.l2={regularizer: {name: l2, weight: 0.01}}
    merges: dict[str, Any] = field(
        default_factory=lambda: {"dtm": {}}
    )  # name -> keys of `merge`, e.g. merges.ties={method: ties}; merges.dtm=null leaves the average out
    evaluate: dict[str, Any] = field(
        default_factory=dict
    )  # keys of `evaluate`: the loss on held-out rows, if there are
    sub_models: bool = False  # evaluate each sub-model too
    evaluate_on: str | None = None  # a suite of benchmarks to evaluate on too: dtm, or any that `evaluate suite=` knows
    benchmarks: dict[str, Any] = field(default_factory=dict)  # keys of that verb, e.g. benchmarks.suite.limit=100
