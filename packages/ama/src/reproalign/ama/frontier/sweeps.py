"""From the options of ``ama frontier`` to points: which models there are, and which place in which series each has.

Points that are the same model by construction share it, so that it is made and evaluated once: the ratio 0 for all
parts is θ where everything that is not averaged stays θ's, the ratio 1 is θ_0 where it stays θ_0's, equal ratios are MA
whatever the parts, and learned ratios with the mean 0 or 1 have nothing to learn.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from reproalign.ama.frontier.config import FrontierConfig, LearnedSweep
from reproalign.ama.frontier.entries import Entry, LearnedRatios, Model, Sweeps
from reproalign.ama.levels import pivots_of
from reproalign.ama.parts import ALIASES

PRE = "pre"  # name of θ_0 among the models
IS_POST = ("released_ma", "linear_head_post")  # rules under which α = 0 is θ itself
IS_PRE = ("released_ma", "linear_head_pre")  # rules under which α = 1 is θ_0 itself
MA = "MA"


def make_sweeps(config: FrontierConfig) -> Sweeps:
    """Return the points of the options, checked before (:mod:`reproalign.ama.frontier.settings`)."""
    return _Sweeps(config).make()


def levels_count(level: str) -> str:
    """Return the number of parts of a level, as text; empty if the model decides it."""
    pivots = pivots_of(level)
    if pivots is not None:
        return str(len(pivots) + 1)
    found = re.fullmatch(r"l?(?:block|even|paper)(\d+)", level)
    return found[1] if found else ""


def on_pre(values: Iterable[float], alpha_on: str) -> list[float]:
    """Return ratios as they multiply pre, each once, ascending."""
    found = {round(float(value) if alpha_on == "pre" else 1 - float(value), 12) for value in values}
    return sorted(found)


class _Sweeps:
    def __init__(self, config: FrontierConfig) -> None:
        self.config = config
        self.models: dict[tuple[Any, ...], Model] = {}  # by what they are
        self.entries: list[Entry] = []

    def make(self) -> Sweeps:
        config = self.config
        self._row(self._there(PRE, config.pre), "θ_0", "", "pre", label="θ_0")
        for post, path in config.post.items():
            self._row(self._there(post, path), f"θ ({post})", post, "post", label="θ")
            self._averages(post)
        for name, given in config.models.items():
            self._trained(name, given)
        return Sweeps(list(self.models.values()), self.entries)

    def _averages(self, post: str) -> None:
        config = self.config
        if config.ma:
            for alpha in self._alphas(None):
                self._row(self._ma(post, alpha), f"{MA} ({post})", post, "ma", label=f"{alpha:g}", alpha=alpha)
        for part in config.parts.parts:
            self._one_part(post, part)
        for offsets in config.patterns.offsets:
            self._pattern(post, [float(offset) for offset in offsets])
        for sweep in ("hma", "adamerging"):
            self._learned(post, sweep, getattr(config, sweep))
        for fraction in config.graft:
            name = f"{post}-graft-{fraction:g}"
            model = self._made(("graft", post, fraction), name, post, {"method": "graft", "fraction": fraction})
            self._row(
                model,
                f"Graft ({post})",
                post,
                "graft",
                label=f"{fraction:g}",
                parameter="fraction",
                value=f"{fraction:g}",
            )

    def _one_part(self, post: str, part: str) -> None:
        level = self.config.parts.level
        title = f"{part.capitalize()} part" if part in ALIASES else f"Part {part} of {level}"
        for alpha in self._alphas(self.config.parts.alphas):
            words = {**self._rule, "alpha": alpha, "parts": level, "only": part}
            name = f"{post}-{level.replace('#', '-')}-{part}-{alpha:g}"
            model = self._made(("part", post, level, part, alpha), name, post, words) if alpha else self._ma(post, 0.0)
            number = part if part in ALIASES else str(int(part) + 1)
            self._row(model, f"{title} ({post})", post, "part", label=f"{alpha:g}", part=number, alpha=alpha)

    def _pattern(self, post: str, given: list[float]) -> None:
        sweep = self.config.patterns
        offsets = given if self.config.alpha_on == "pre" else [-offset for offset in given]
        shape = "|".join(_shifted(offset) for offset in offsets)
        for alpha in self._alphas(sweep.alphas):
            ratios = [round(alpha + offset, 12) for offset in offsets]
            if not all(0 <= ratio <= 1 for ratio in ratios):
                continue
            mean = round(math.fsum(ratios) / len(ratios), 12)
            words = {**self._rule, "alpha": alpha, "parts": sweep.level, "pattern": offsets}
            digits = "_".join(f"{ratio:g}" for ratio in ratios)
            level = sweep.level.replace("#", "-")
            identity = ("pattern", post, sweep.level, tuple(ratios), alpha)
            model = (
                self._made(identity, f"{post}-pattern-{level}-{digits}-base-{alpha:g}", post, words)
                if any(offsets)
                else self._ma(post, alpha)
            )
            value = "|".join(f"{ratio:g}" for ratio in ratios)
            self._row(
                model,
                f"Pattern ({shape}) ({post})",
                post,
                "pattern",
                label=f"{alpha:g}",
                alpha=mean,
                parameter="ratios",
                value=value,
            )

    def _learned(self, post: str, method: str, sweep: LearnedSweep) -> None:
        title = {"hma": "HMA", "adamerging": "AdaMerging"}[method]
        for level in sweep.levels:
            count = levels_count(level)
            parameter, value = ("K", count) if count else ("level", level)
            for alpha in self._alphas(sweep.alphas):
                learned = LearnedRatios(method, post, level, alpha)
                name = f"{post}-{method}-{level.replace('#', '-')}-{alpha:g}"
                model = (
                    self._made((learned,), name, post, dict(self._rule), learned)
                    if 0 < alpha < 1
                    else self._ma(post, alpha)
                )
                self._row(
                    model,
                    f"{title} {level} ({post})",
                    post,
                    method,
                    label=f"{alpha:g}",
                    alpha=alpha,
                    parameter=parameter,
                    value=value,
                )

    def _trained(self, name: str, given: dict[str, Any]) -> None:
        algorithm = str(given.get("algorithm") or next(iter(self.config.post)))
        method, value = str(given["method"]), given.get("value")
        shown = f"{value:g}" if isinstance(value, int | float) else str(value or "")
        model = self._there(name, str(given["model"]))
        series = str(given.get("series") or f"{method} ({algorithm})")
        self._row(
            model,
            series,
            algorithm,
            method,
            label=shown or name,
            parameter=str(given.get("parameter") or ""),
            value=shown,
        )

    @property
    def _rule(self) -> dict[str, Any]:
        head = {} if self.config.head is None else {"head": self.config.head}
        return {"tensors": self.config.tensors, **head}

    def _alphas(self, own: Sequence[float] | None) -> list[float]:
        return on_pre(self.config.alphas if own is None else own, self.config.alpha_on)

    def _ma(self, post: str, alpha: float) -> Model:
        rule = self.config.tensors
        if alpha == 0 and rule in IS_POST:
            return self._there(post, self.config.post[post])
        if alpha == 1 and rule in IS_PRE and self.config.head != "post":
            return self._there(PRE, self.config.pre)
        return self._made(("ma", post, alpha), f"{post}-ma-{alpha:g}", post, {**self._rule, "alpha": alpha})

    def _there(self, name: str, path: str) -> Model:
        return self.models.setdefault(("there", path), Model(name, path=path))

    def _made(
        self,
        identity: tuple[Any, ...],
        name: str,
        post: str,
        average: dict[str, Any],
        learned: LearnedRatios | None = None,
    ) -> Model:
        return self.models.setdefault(identity, Model(name, None, post, average, learned))

    def _row(self, model: Model, series: str, algorithm: str, method: str, **more: Any) -> None:
        self.entries.append(Entry(model.name, series, algorithm, method, **more))


def _shifted(offset: float) -> str:
    return f"a{offset:+g}" if offset else "a"
