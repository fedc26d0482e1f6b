"""The models and rows of a frontier: what is made, and where each model stands in which series."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class LearnedRatios:
    """Ratios that a child ``adapt`` finds.

    Attributes:
        sweep: ``hma`` or ``adamerging``: the section of its options.
        post: name of the post model.
        level: of the parts.
        alpha: their mean ratio, on pre.
    """

    sweep: str
    post: str
    level: str
    alpha: float


@dataclass(frozen=True)
class Model:
    """A model that is evaluated.

    Attributes:
        name: of its child runs' folders.
        path: where it is; None if it is an average that is made here.
        post: name of the post model that is averaged.
        average: keys of the child ``average``.
        learned: how its ratios are found; None: they are in ``average``.
    """

    name: str
    path: str | None = None
    post: str = ""
    average: dict[str, Any] = field(default_factory=dict)
    learned: LearnedRatios | None = None


@dataclass(frozen=True)
class Entry:
    """A model's place in a series: a row of ``points.csv`` without its measures.

    Attributes:
        model: its name.
        series: that it belongs to.
        algorithm: of the alignment; empty for θ_0.
        method: see :data:`reproalign.ama.points.METHODS`.
        label: what stands beside its dot.
        part: of a one-part sweep.
        alpha: mean ratio on pre, of a one-part sweep that part's.
        parameter: what else the series varies.
        value: of it.
    """

    model: str
    series: str
    algorithm: str
    method: str
    label: str = ""
    part: str = ""
    alpha: float | None = None
    parameter: str = ""
    value: str = ""


@dataclass(frozen=True)
class Sweeps:
    """All models, each once, and all rows."""

    models: list[Model]
    entries: list[Entry]
