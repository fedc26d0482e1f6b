"""Options of ``dtm run``; those of the single verbs are in ``disperse/``, ``train/``, ``merge/`` and ``study/``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from reproalign.common.config.model import ModelConfig
from reproalign.common.options import option, output_dir, section, seed, variant


@dataclass
class PipelineConfig:
    """``dtm run``: disperse, train, merge and evaluate, each as a run of its own below this one."""

    output_dir: str = output_dir()
    seed: int = seed(help="seed of every child")
    variant: str = variant(help="released: of every child that knows the two")
    model: ModelConfig = section(ModelConfig, help="the base that every training starts from")
    disperse: dict[str, Any] = option({}, help="any key of `disperse` that run does not set")
    train: dict[str, Any] = option({}, help="likewise of `train`: of the sub-models and of what is beside")
    vanilla: bool = option(True, help="train one model on all rows beside")
    beside: dict[str, Any] = option(
        {},
        help="other trainings on all rows: name -> keys of `train`: beside.l2={regularizer: {name: l2, weight: 0.01}}",
    )
    merges: dict[str, Any] = option(
        {"dtm": {}},
        help="name -> keys of `merge`, e.g. merges.ties={method: ties}; merges.dtm=null leaves the average out",
    )
    evaluate: dict[str, Any] = option({}, help="keys of `evaluate`: the loss on held-out rows, if there are")
    sub_models: bool = option(False, help="evaluate each sub-model too")
    evaluate_on: str | None = option(
        None, help="a suite of benchmarks to evaluate on too: dtm, or any that `evaluate suite=` knows", null="none"
    )
    benchmarks: dict[str, Any] = option({}, help="keys of that verb, e.g. benchmarks.suite.limit=100")
