"""What a solver is given and what it hands back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor

from reproalign.ama.adapt.likelihood import LikelihoodObjective
from reproalign.ama.adapt.parametrisation import Pull
from reproalign.ama.adapt.rows import TokenRow
from reproalign.ama.adapt.settings import AdaptSettings

Log = Callable[[int, Mapping[str, float]], None]
Measure = Callable[[int, list[float]], float]


@dataclass(frozen=True)
class Problem:
    """Ratios to be found by the likelihood of rows.

    Attributes:
        likelihood: of a model.
        rows: what is learned from.
        settings: of the run.
        names: of the groups whose ratio is saved.
        weights: what each counts for in the mean.
        pull: the regulariser, or None.
        multiplicity: linear layers of each group.
        batch_size: rows of a forward where the solver does not say.
        tolerance: of the exact solver.
        max_evaluations: of the exact solver.
        seed: of the order of the rows.
    """

    likelihood: LikelihoodObjective
    rows: Sequence[TokenRow]
    settings: AdaptSettings
    names: Sequence[str]
    weights: Float[Tensor, " groups"]
    pull: Pull | None
    multiplicity: Sequence[int]
    batch_size: int
    tolerance: float
    max_evaluations: int
    seed: int


@dataclass(frozen=True)
class Solution:
    """Ratios that were found.

    Attributes:
        ratios: of the groups, on pre.
        steps: of the optimiser, or evaluations of the objective.
        facts: how it ended.
    """

    ratios: list[float]
    steps: int
    facts: Mapping[str, Any]


Solver = Callable[[Problem, float, Path, Log], Solution]
