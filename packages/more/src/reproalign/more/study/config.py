"""Options of ``more-rm study …``."""

from __future__ import annotations

from dataclasses import dataclass

from reproalign.common.options import option, output_dir, section, seed


@dataclass
class OutliersConfig:
    """Which reward differences are outliers, in the right pairs (above 0) and the wrong ones by themselves."""

    rule: str = option(
        "tukey",
        help="which differences are outliers",
        choices={
            "tukey": "beyond the upper quartile + bound · IQR",
            "sd": "beyond mean + bound · sd",
            "share": "the largest",
        },
    )
    bound: float = option(1.5, help="of the rule; rule=share: the share of the pairs, below 1", above=0)


@dataclass
class StudyConfig:
    """What every study reads."""

    output_dir: str = output_dir()
    seed: int = seed(help="seed of the bootstrap")
    runs: list[str] = option([], help="folders of runs, or BASE/SCHEME@FOLDER; of one label: seeds")
    resamples: int = option(200, help="of the bootstrap over pairs", at_least=100)
    outliers: OutliersConfig = section(OutliersConfig)


@dataclass
class TablesConfig(StudyConfig):
    """``study tables``: the paper's Tables 1, 2 and 4 to 6 of these runs, beside the printed numbers."""


@dataclass
class ClaimsConfig(StudyConfig):
    """``study claims``: the paper's claims on its own numbers, and on those of runs."""

    claims: list[str] = option([], help="such as C1; none: all")


@dataclass
class FiguresConfig(StudyConfig):
    """``study figures``: the paper's figures of these runs."""

    domains: list[str] = option([], help="whose rewards are drawn; none: all that every run has")
