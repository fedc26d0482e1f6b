"""MORE's own options. Paper: arXiv 2312.07401; ``ERRATA.md`` says where ``variant=paper`` and ``released`` differ."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from reproalign.common.config import BaseRunConfig, ReadingConfig, RewardModelConfig, TextConfig
from reproalign.common.judging.config import PairRMConfig
from reproalign.common.judging.endpoint import EndpointConfig
from reproalign.common.options import option, section


@dataclass
class DomainsConfig(ReadingConfig):
    """The preference data sets, called domains (released: tasks), and what becomes of their items."""

    domains: list[str] | None = option(None, help="names in data.sets, in order", null="all of data.sets")
    train_domains: list[str] | None = option(
        None, help="those trained on; the others are only measured", null="all of them"
    )
    task_num: int | None = option(
        None, help="number of domains trained on, to be checked", null="as many as there are", at_least=1
    )
    oasst1_pairs: str = option(
        "adjacent",
        help="replies to one prompt make items of",
        choices={"adjacent": "neighbours in rank", "best-vs-rest": "the best with each other", "all": "all in one"},
    )
    resampling: bool = option(True, help="bring every domain to one size, and group one item of each")
    resampling_size: int | None = option(
        40_000, help="items per domain", null="of the largest domain", at_least=1, source="the release"
    )

    def names(self) -> list[str]:
        """Return the names of the domains, in order."""
        return [*self.sets] if self.domains is None else list(self.domains)


@dataclass
class WeightsConfig:
    """How the domains' losses are weighted at every step."""

    rule: str = "min-norm"  # min-norm | uniform (released: reweight=false) | fixed
    fixed: dict[str, float] = field(default_factory=dict)  # domain -> weight, for rule=fixed; they are scaled to sum 1
    normalize: str | None = None  # gradients before the solver: none | l2 | loss | loss+; null: none (released: l2)
    alpha: float | None = None  # momentum m <- (1 - alpha) m + alpha g; 1: none; null: 1 (released: 0.99)
    solver: str | None = None  # exact | frank-wolfe; null: exact (released: frank-wolfe)


@dataclass
class TrainConfig(BaseRunConfig):
    """``more-rm train``: a reward model on several domains."""

    method: str = "more"  # more | multitask (the plain ranking loss on the shuffled mixture)
    variant: str = "paper"  # paper | released
    model: RewardModelConfig = field(default_factory=RewardModelConfig)
    data: DomainsConfig = section(DomainsConfig)
    text: TextConfig = field(default_factory=TextConfig)
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    evaluate_before: bool = False  # also measure the starting model (released: eval_at_start)
    ties: str | None = None  # a pair of equal rewards counts in the accuracy as: wrong | half; null: half if released


@dataclass
class EvaluateConfig:
    """``more-rm evaluate``: a reward model on held-out domains; or responses of language models against each other."""

    output_dir: str = MISSING
    seed: int = 42
    variant: str | None = None  # paper | released; null: as trained, otherwise paper
    model: RewardModelConfig = field(default_factory=RewardModelConfig)
    data: DomainsConfig = section(DomainsConfig)
    text: TextConfig = field(default_factory=TextConfig)
    fresh_head: bool = False  # measure a language model with a new head, drawn by the seed (the paper's Raw)
    batch_size: int = 8  # items per forward, or texts
    ties: str | None = None  # a pair of equal rewards counts in the accuracy as: wrong | half; null: half if released
    temperature: bool = False  # also report calibration after temperature scaling, fitted by cross-validation
    responses: list[str] | None = (
        None  # two or more files of `more-rm sample`: compare these instead of reading domains
    )
    judge: EndpointConfig = field(default_factory=EndpointConfig)  # for win rates; no judge.model: by rewards alone
    pairrm: PairRMConfig = field(default_factory=PairRMConfig)  # another judge, with pairrm.model; see docs/judging.md
    template: str | None = None  # of the judge: helpful | harmless | union (null) | a text file; see the README
    prompts: str | None = None  # of the judge: a YAML file, helpful | harmless | union -> text; see the README
    attempts: int | None = None  # requests for a readable verdict, with variant=released; null: 10
    confidence: float = 0.95  # of a win rate's interval
    trainer: dict[str, Any] = field(default_factory=dict)  # any field of transformers.TrainingArguments, e.g. bf16


@dataclass
class AverageConfig:
    """``more-rm average``: the mean reward of several models on the same held-out items."""

    output_dir: str = MISSING
    runs: list[str] = MISSING  # folders of runs that measured the same held-out items
    ties: str = "wrong"  # what equal mean rewards count for the accuracy: wrong, nothing | half
