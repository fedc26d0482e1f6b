"""Options of ``more-rm study …``."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING


@dataclass
class OutliersConfig:
    """Which reward differences are outliers, in the right pairs (above 0) and the wrong ones by themselves."""

    rule: str = (
        "tukey"  # tukey: beyond the upper quartile + bound · IQR | sd: beyond mean + bound · sd | share: largest
    )
    bound: float = 1.5  # of the rule; rule=share: the share of the pairs, in (0, 1)


@dataclass
class StudyConfig:
    """What every study reads."""

    output_dir: str = MISSING
    seed: int = 42  # of the bootstrap
    runs: list[str] = field(default_factory=list)  # folders of runs, or BASE/SCHEME@FOLDER; of one label: seeds
    resamples: int = 200  # of the bootstrap over pairs
    outliers: OutliersConfig = field(default_factory=OutliersConfig)


@dataclass
class TablesConfig(StudyConfig):
    """``study tables``: the paper's Tables 1, 2 and 4 to 6 of these runs, beside the printed numbers."""


@dataclass
class ClaimsConfig(StudyConfig):
    """``study claims``: the paper's claims on its own numbers, and on those of runs."""

    claims: list[str] = field(default_factory=list)  # such as C1; none: all


@dataclass
class FiguresConfig(StudyConfig):
    """``study figures``: the paper's figures of these runs."""

    domains: list[str] = field(default_factory=list)  # whose rewards are drawn; none: all that every run has
