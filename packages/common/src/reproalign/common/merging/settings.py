"""The methods of merging and what each takes, and the settings of one merge."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from reproalign.common.errors import UserError
from reproalign.common.merging.values import Setting

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


@dataclass(frozen=True)
class Method:
    """What a method takes.

    Attributes:
        source: paper and equation.
        keys: of :class:`MergeConfig` that it reads, besides those that all read.
        base: reads θ_0.
        average: weights are shares of one, which negative ones are not.
    """

    source: str
    keys: frozenset[str]
    base: bool = False
    average: bool = False


METHODS = {
    "linear": Method("arXiv 2203.05482, Eq. 1", frozenset({"weights", "parts", "normalize"}), average=True),
    "slerp": Method("Shoemake 1985, Section 3.3", frozenset({"t", "parts"})),
    "task_arithmetic": Method(
        "arXiv 2212.04089, Section 2", frozenset({"weights", "parts", "normalize", "scale"}), base=True
    ),
    "ties": Method(
        "arXiv 2306.01708, Algorithm 1",
        frozenset({"weights", "parts", "normalize", "scale", "density", "trim_scope"}),
        base=True,
    ),
    "dare_linear": Method(
        "arXiv 2311.03099, Eq. 2-5", frozenset({"weights", "parts", "normalize", "scale", "density", "seed"}), base=True
    ),
    "dare_ties": Method(
        "arXiv 2311.03099, Eq. 2-4, and 2306.01708, Section 4.2",
        frozenset({"weights", "parts", "normalize", "scale", "density", "seed"}),
        base=True,
    ),
    "fisher": Method("arXiv 2111.09832, Eq. 6", frozenset({"weights", "parts", "statistics", "floor"}), average=True),
    "regmean": Method(
        "arXiv 2212.09849, Eq. 2", frozenset({"weights", "parts", "statistics", "off_diagonal"}), average=True
    ),
    "ensemble": Method("arXiv 2405.13432", frozenset({"weights"}), average=True),
}


@dataclass(frozen=True)
class MergeSettings:
    """A merge, checked as far as it can be without opening a model.

    Fields are :class:`MergeConfig`'s, and ``layers``: how many a mergekit plan's slices hold; None: all.
    """

    method: str
    models: tuple[str, ...]
    base: str | None
    weights: tuple[Setting, ...]
    densities: tuple[Setting, ...]
    t: Setting
    normalize: bool
    scale: float
    trim_scope: str
    statistics: tuple[str, ...]
    floor: float
    off_diagonal: float
    output: str | None
    space: str | None
    rank: int | None
    seed: int
    dtype: str
    accumulate: str
    embeddings: str
    tied: str
    allow: frozenset[str]
    files_from: str | None
    layers: int | None

    @property
    def wide(self) -> str:
        """The dtype that is computed in, but for what ``accumulate=output`` rounds."""
        return "float64" if self.accumulate == "float64" else "float32"

    @property
    def average(self) -> bool:
        """Weights are shares of one."""
        return METHODS[self.method].average


def parse_size(text: str, key: str = "shard_size") -> int:
    """Return the bytes of ``5GB``, ``500MB`` …

    Raises:
        UserError: for anything else, naming the ``key``.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip().upper())
    if not found or float(found[1]) == 0:
        raise UserError(f"{key}={text} is no size; write e.g. 5GB or 500MB")
    return int(float(found[1]) * UNITS[found[2]])


def normalized_weights(settings: MergeSettings, weights: Sequence[float], tensor: str) -> tuple[float, ...]:
    """Return a tensor's weights as the equation takes them.

    Raises:
        UserError: if they are negative where shares are meant, or sum to 0.
    """
    if settings.average and min(weights) < 0 and "negative" not in settings.allow:
        raise UserError(
            f"weights of '{tensor}': {list(weights)} holds a negative one; add allow=[negative] to extrapolate"
        )
    if not settings.normalize or settings.method in ("ties", "dare_ties"):
        return tuple(weights)  # these two divide by what takes part, entry by entry
    total = math.fsum(weights)
    if abs(total) < 1e-12:
        advice = "; set normalize=false" if "normalize" in METHODS[settings.method].keys else ""
        raise UserError(f"weights of '{tensor}': {list(weights)} sum to 0 and cannot be normalised{advice}")
    # Shares that already sum to 1 keep their bits.
    return tuple(weights) if abs(total - 1) < 1e-12 else tuple(weight / total for weight in weights)
