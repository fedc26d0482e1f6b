"""Options of the kinds of ``ama study``."""

from __future__ import annotations

from dataclasses import dataclass

from reproalign.ama.average.config import TENSORS
from reproalign.common.options import option, output_dir, seed


@dataclass
class ClaimsConfig:
    """``study claims``: the paper's claims on its own numbers, and on a set of results."""

    output_dir: str = output_dir()
    seed: int = seed(help="seed of the bootstrap")
    results: list[str] | None = option(
        None, help="points.csv files or folders that hold one (docs/study.md)", null="the paper alone"
    )
    claims: list[str] | None = option(
        None, help="ids in paper.yaml, e.g. [C3,C4], which the results must suffice for", null="all"
    )
    tasks: dict[str, str] = option(
        {},
        help="metric of the paper -> column of the results; -column: less is better, e.g. tasks.reading=-perplexity",
    )
    rule: str | None = option(None, help="only averages under this tensor rule", choices=TENSORS, null="under any")
    judge: str = option(
        "front", help="of one sweep against another", choices={"front": "margins at equal reward", "hypervolume": ""}
    )
    floor: str = option(
        "published",
        help="below it nothing is clear",
        choices={"published": "the paper's", "measured": "θ_0 scored twice", "none": ""},
    )
    resamples: int = option(1000, help="of the paired bootstrap", at_least=100)
    confidence: float = option(0.95, help="of its intervals", above=0, below=1)


@dataclass
class TaxConfig:
    """``study tax``: what alignment gains and loses, in per cent."""

    output_dir: str = output_dir()
    results: list[str] | None = option(
        None, help="points.csv files or folders that hold one", null="the paper's numbers alone"
    )
    alpha: float | None = option(
        None, help="of the results' averages in the layout of Table 1", at_least=0, at_most=1, null="0.2 where there is"
    )
    rule: str | None = option(None, help="only averages under this tensor rule", choices=TENSORS, null="under any")


@dataclass
class TrajectoryConfig:
    """``study trajectory``: reward and tasks along a training, or the fronts of several algorithms."""

    output_dir: str = output_dir()
    results: list[str] | None = option(
        None, help="points.csv files or folders that hold one", null="the paper's numbers alone"
    )
    kind: str = option(
        "training",
        help="what is drawn",
        choices={"training": "checkpoints of one algorithm, Fig. 12", "algorithms": "their MA fronts, Fig. 14"},
    )
    algorithm: str = option("rsf", help="of kind=training")
    metrics: list[str] = option(["reading", "common_sense", "bleu"], help="a panel each")
    published: bool = option(True, help="draw the paper's series beside")
    rule: str | None = option(None, help="only averages under this tensor rule", choices=TENSORS, null="under any")


@dataclass
class PropositionConfig:
    """``study proposition``: Proposition 5.1 simulated, against the closed forms."""

    output_dir: str = output_dir()
    seed: int = seed(help="seed of the draws")
    samples: int = option(200000, help="draws for each setting", at_least=1000)
    classes: list[int] = option([3], help="K of the proposition", at_least=2)
    p: list[float] = option([0.8], help="chance that a feature shows a random class", above=0, at_most=1)
    features: list[int] = option([20], help="n: features that each model has learned", at_least=1)
    overlap: list[int] = option([0, 5, 10, 15, 20], help="n_o: learned by both; at most n", at_least=0)
