"""Options of the kinds of ``ama study``."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING


@dataclass
class ClaimsConfig:
    """``study claims``: the paper's claims on its own numbers, and on a set of results."""

    output_dir: str = MISSING
    seed: int = 42  # of the bootstrap
    results: list[str] | None = None  # points.csv files or folders that hold one (docs/study.md); null: the paper alone
    claims: list[str] | None = None  # ids in paper.yaml, e.g. [C3,C4], which the results must suffice for; null: all
    tasks: dict[str, str] = field(
        default_factory=dict
    )  # a metric of the paper -> a column of the results; -column: lower is better, e.g. tasks.reading=-perplexity
    rule: str | None = None  # only averages under this tensor rule: released_ma | linear_head_pre | linear_head_post
    judge: str = "front"  # of one sweep against another: front (margins at equal reward) | hypervolume
    floor: str = "published"  # below it nothing is clear: published (the paper's) | measured (θ_0 scored twice) | none
    resamples: int = 1000  # of the paired bootstrap, at least 100
    confidence: float = 0.95  # of its intervals, in (0, 1)


@dataclass
class TaxConfig:
    """``study tax``: what alignment gains and loses, in per cent."""

    output_dir: str = MISSING
    results: list[str] | None = None  # points.csv files or folders that hold one; null: the paper's numbers alone
    alpha: float | None = None  # of the results' averages in the layout of Table 1, in [0, 1]; null: 0.2 where there is
    rule: str | None = None  # only averages under this tensor rule; see study claims


@dataclass
class TrajectoryConfig:
    """``study trajectory``: reward and tasks along a training, or the fronts of several algorithms."""

    output_dir: str = MISSING
    results: list[str] | None = None  # points.csv files or folders that hold one; null: the paper's numbers alone
    kind: str = "training"  # training (checkpoints of one algorithm, Fig. 12) | algorithms (their MA fronts, Fig. 14)
    algorithm: str = "rsf"  # of kind=training
    metrics: list[str] = field(default_factory=lambda: ["reading", "common_sense", "bleu"])  # a panel each
    published: bool = True  # draw the paper's series beside
    rule: str | None = None  # only averages under this tensor rule; see study claims


@dataclass
class PropositionConfig:
    """``study proposition``: Proposition 5.1 simulated, against the closed forms."""

    output_dir: str = MISSING
    seed: int = 42  # of the draws
    samples: int = 200000  # draws for each setting, at least 1000
    classes: list[int] = field(default_factory=lambda: [3])  # K of the proposition, each at least 2
    p: list[float] = field(default_factory=lambda: [0.8])  # chance that a feature shows a random class, in (0, 1]
    features: list[int] = field(default_factory=lambda: [20])  # n: features that each model has learned, at least 1
    overlap: list[int] = field(default_factory=lambda: [0, 5, 10, 15, 20])  # n_o: learned by both; at most n
