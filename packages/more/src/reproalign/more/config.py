"""MORE's own options. Paper: arXiv 2312.07401; ``ERRATA.md`` says where ``variant=paper`` and ``released`` differ."""

from __future__ import annotations

from dataclasses import dataclass

from reproalign.common.config.data import PreparingConfig
from reproalign.common.config.model import LoadedRewardModelConfig, RewardModelConfig
from reproalign.common.config.run import BaseRunConfig, MeasuringConfig
from reproalign.common.config.text import TextConfig
from reproalign.common.judging.config import PairRMConfig
from reproalign.common.judging.endpoint import EndpointConfig
from reproalign.common.options import option, output_dir, section, seed, variant
from reproalign.common.options.shared import VARIANTS

TIES = {"wrong": "nothing", "half": "1/2"}
NORMALIZATIONS = ("none", "l2", "loss", "loss+")


@dataclass
class HeldOutDomainsConfig(PreparingConfig):
    """The preference data sets, called domains (released: tasks), and what items their rows make."""

    domains: list[str] | None = option(None, help="names in data.sets, in order", null="all of data.sets")
    oasst1_pairs: str = option(
        "adjacent",
        help="replies to one prompt make items of",
        choices={"adjacent": "neighbours in rank", "best-vs-rest": "the best with each other", "all": "all in one"},
    )

    def names(self) -> list[str]:
        """Return the names of the domains, in order."""
        return [*self.sets] if self.domains is None else list(self.domains)


@dataclass
class DomainsConfig(HeldOutDomainsConfig):
    """The preference data sets, called domains (released: tasks), and what becomes of their items."""

    train_domains: list[str] | None = option(
        None, help="those trained on; the others are only measured", null="all of them"
    )
    task_num: int | None = option(
        None, help="number of domains trained on, to be checked", null="as many as there are", at_least=1
    )
    resampling: bool = option(True, help="bring every domain to one size, and group one item of each")
    resampling_size: int | None = option(
        40_000,
        help="items per domain",
        null="of the largest domain",
        at_least=1,
        source="the release",
        read_with=("resampling",),
    )


@dataclass
class WeightsConfig:
    """How the domains' losses are weighted at every step."""

    rule: str = option(
        "min-norm",
        help="how the domains' losses are weighted",
        choices={
            "min-norm": "min-norm point of the gradients' hull",
            "uniform": "released: reweight=false",
            "fixed": "weights.fixed",
        },
    )
    fixed: dict[str, float] = option({}, help="domain -> weight, for rule=fixed; they are scaled to sum 1", at_least=0)
    normalize: str | None = option(
        None, help="gradients before the solver", choices=NORMALIZATIONS, null="none (released: l2)"
    )
    alpha: float | None = option(
        None, help="momentum m <- (1 - alpha) m + alpha g; 1: none", above=0, at_most=1, null="1 (released: 0.99)"
    )
    solver: str | None = option(
        None, help="of the min-norm point", choices=("exact", "frank-wolfe"), null="exact (released: frank-wolfe)"
    )


@dataclass
class TrainConfig(BaseRunConfig):
    """``more-rm train``: a reward model on several domains."""

    method: str = option(
        "more",
        help="what is trained",
        choices={
            "more": "losses of the domains are balanced",
            "multitask": "the plain ranking loss on the shuffled mixture",
        },
    )
    variant: str = variant()
    model: RewardModelConfig = section(RewardModelConfig)
    data: DomainsConfig = section(DomainsConfig)
    text: TextConfig = section(TextConfig)
    weights: WeightsConfig = section(WeightsConfig)
    evaluate_before: bool = option(False, help="also measure the starting model (released: eval_at_start)")
    ties: str | None = option(
        None, help="what a pair of equal rewards counts in the accuracy", choices=TIES, null="wrong (released: half)"
    )


@dataclass
class ScoringConfig:
    """What both kinds of ``more-rm evaluate`` have: a reward model and how it reads."""

    output_dir: str = output_dir()
    seed: int = seed()
    variant: str | None = option(
        None,
        help="what is followed where paper and released code differ",
        choices=VARIANTS,
        null="as trained, otherwise paper",
    )
    model: LoadedRewardModelConfig = section(LoadedRewardModelConfig)
    text: TextConfig = section(TextConfig)


@dataclass
class EvaluateConfig(ScoringConfig):
    """``more-rm evaluate``: a reward model on held-out domains."""

    data: HeldOutDomainsConfig = section(HeldOutDomainsConfig)
    fresh_head: bool = option(
        False, help="measure a language model with a new head, drawn by the seed (the paper's Raw)"
    )
    batch_size: int = option(8, help="items per forward", at_least=1)
    ties: str | None = option(
        None, help="what a pair of equal rewards counts in the accuracy", choices=TIES, null="wrong (released: half)"
    )
    temperature: bool = option(
        False, help="also report calibration after temperature scaling, fitted by cross-validation"
    )
    trainer: MeasuringConfig = section(MeasuringConfig)


@dataclass
class CompareConfig(ScoringConfig):
    """``more-rm evaluate responses=[A,B]``: responses of language models against each other."""

    seed: int = seed(help="seed of the bootstrap")
    responses: list[str] = option(help="two or more files of `more-rm sample`")
    batch_size: int = option(8, help="texts per forward", at_least=1)
    judge: EndpointConfig = section(EndpointConfig, help="for win rates; no judge.model: by rewards alone")
    pairrm: PairRMConfig = section(PairRMConfig, help="another judge, with pairrm.model; see docs/judging.md")
    template: str | None = option(
        None,
        help="of the judge; see the README",
        choices=("helpful", "harmless", "union"),
        also="a text file",
        null="union",
    )
    prompts: str | None = option(
        None,
        help="of the judge: a YAML file, helpful | harmless | union -> text; see the README",
        null="the package's own",
    )
    attempts: int | None = option(
        None, help="requests for a readable verdict, with variant=released", at_least=1, null="10"
    )
    confidence: float = option(0.95, help="of a win rate's interval", above=0, below=1)


@dataclass
class AverageConfig:
    """``more-rm average``: the mean reward of several models on the same held-out items."""

    output_dir: str = output_dir()
    runs: list[str] = option(help="folders of runs that measured the same held-out items")
    ties: str = option("wrong", help="what equal mean rewards count in the accuracy", choices=TIES)
