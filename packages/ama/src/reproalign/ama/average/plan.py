"""From the keys of ``ama average`` to a checked plan: which ratios, of which parts, under which rule."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from reproalign.ama.average.config import AverageConfig
from reproalign.ama.average.engine import ALPHA, core_config
from reproalign.ama.average.names import LegacyName, alpha_of_name, read_name, read_released_name
from reproalign.ama.levels import check_level, pivots_of
from reproalign.ama.parts import Parts
from reproalign.ama.ratios_file import Ratios, read_ratios
from reproalign.ama.rules import AmaRules, rules_of
from reproalign.common.errors import UserError
from reproalign.common.merging.checks import check_number
from reproalign.common.merging.resolving import resolve as resolve_core

READERS = {  # keys that not every method reads -> the method that does
    **dict.fromkeys(("alpha", "parts", "ratios", "only", "pattern", "name", "tensors", "head"), "ma"),
    "fraction": "graft",
    **dict.fromkeys(("checkpoints", "decay", "reset_every"), "sma"),
}
SAYS_RATIOS = ("ratios", "only", "pattern", "name")


@dataclass(frozen=True)
class AveragePlan:
    """A plan of ``method=ma``; all ratios multiply pre.

    Attributes:
        config: as given.
        variant: its rules.
        base: α: the ratio of what no part holds.
        level: of the parts, see :mod:`reproalign.ama.levels`.
        tensors: rule of which tensors are averaged.
        head: its rule; None: what the parts say.
        ratios: of each part, or one for all.
        only: the one part that is averaged, in the user's words; None: all.
        file: that the ratios were read from, or None.
        name: the release's notation, whose reading of tensor names counts, or None.
    """

    config: AverageConfig
    variant: AmaRules
    base: float
    level: str
    tensors: str
    head: str | None
    ratios: tuple[float, ...] | float
    only: str | None = None
    file: Ratios | None = None
    name: LegacyName | None = None

    def group_ratios(self, parts: Parts) -> dict[str, float]:
        """Return the ratio of each group of a model's parts.

        Raises:
            UserError: for another number of ratios than parts, or a part that the model does not have.
        """
        if self.file is not None:
            return self.file.of(parts, f"ratios={self.config.ratios}")
        if self.only is not None:
            averaged = parts.find(self.only, "only")
            assert isinstance(self.ratios, float)
            return {name: self.ratios if name == averaged else 0.0 for name in parts.names}
        if isinstance(self.ratios, float):
            return dict.fromkeys(parts.names, self.ratios)
        if len(self.ratios) != len(parts.names):
            key = "pattern" if self.config.pattern is not None else "ratios"
            layers = f" of {len(parts.layer_groups)} layers" if parts.layer_groups else ""
            raise UserError(
                f"{key}: {len(self.ratios)} numbers for the {len(parts.names)} parts of parts={self.level}{layers}; "
                "give one for each"
            )
        return dict(zip(parts.names, self.ratios, strict=True))


def resolve(config: AverageConfig) -> AveragePlan | None:
    """Check every key that can be checked without opening a model.

    Returns:
        The plan of an average; None for ``graft`` and ``sma``, which have no ratios.

    Raises:
        UserError: naming the key.
    """
    for key, method in READERS.items():
        if getattr(config, key) is not None and config.method != method:
            raise UserError(f"{key} has no meaning for method={config.method}, only for {method}; remove it")
    if config.method == "ma":
        plan = _averaged(config)
        resolve_core(core_config(config))
        return plan
    if config.alpha_on != "pre" or config.norms:
        key = "norms" if config.norms else "alpha_on"
        raise UserError(f"{key} has no meaning for method={config.method}, which has no ratios; remove it")
    resolve_core(core_config(config))
    return None


def _averaged(config: AverageConfig) -> AveragePlan:
    variant = rules_of(config.variant)
    given = [key for key in SAYS_RATIOS if getattr(config, key) is not None]
    if len(given) > 1:
        raise UserError(f"{given[0]} and {given[1]} both say the ratios; remove one")
    if isinstance(config.ratios, str):
        plan = _from_file(config, variant)
    elif config.name is not None:
        plan = _from_name(config, variant)
    else:
        plan = _from_numbers(config, variant)
    _check_range(config, plan)
    if plan.file is None and plan.name is None:
        check_level(plan.level)
        _check_count(plan)
    return plan


def _from_numbers(config: AverageConfig, variant: AmaRules) -> AveragePlan:
    on_pre = _converter(config.alpha_on)
    alpha = config.alpha
    base = ALPHA if alpha is None else on_pre(alpha)
    cut, tensors = config.parts or variant.parts, config.tensors or variant.tensors
    plan = AveragePlan(config, variant, base, cut, tensors, config.head, base)
    if config.only is not None:
        # What is not averaged is θ, the head and the last norm too, unless the head is asked for.
        return replace(plan, base=base if config.head == "base" else 0.0, only=config.only)
    if config.pattern is not None:
        start = alpha if alpha is not None else on_pre(ALPHA)
        return replace(plan, ratios=tuple(on_pre(round(start + value, 12)) for value in config.pattern))
    if config.ratios is not None:
        ratios = tuple(on_pre(value) for value in _numbers(config.ratios))
        return replace(plan, base=sum(ratios) / len(ratios) if alpha is None else base, ratios=ratios)
    return replace(plan, level=config.parts or "block1")


def _from_file(config: AverageConfig, variant: AmaRules) -> AveragePlan:
    for key in ("alpha", "parts"):
        if getattr(config, key) is not None:
            raise UserError(f"{key} has no meaning beside a file of ratios, which says it; remove {key}")
    if config.alpha_on != "pre":
        raise UserError("alpha_on=post has no meaning beside a file of ratios, which multiply pre; remove it")
    found = read_ratios(config.ratios, allow_bin="bin" in (config.allow or ()))
    tensors = config.tensors or found.tensors or variant.learned_tensors
    return AveragePlan(config, variant, found.base, found.level, tensors, config.head or found.head, 0.0, file=found)


def _from_name(config: AverageConfig, variant: AmaRules) -> AveragePlan:
    assert config.name is not None
    for key in ("parts", "tensors", "head"):
        if getattr(config, key) is not None:
            raise UserError(f"{key} has no meaning beside name, which says it; remove {key}")
    if config.alpha_on != "pre":
        raise UserError("alpha_on=post has no meaning beside name, whose ratios multiply pre; remove it")
    name = read_released_name(config.name) if variant.release_names else read_name(config.name)
    inside = alpha_of_name(config.name)
    if config.alpha is None and inside is None:
        raise UserError(f"alpha is not set, and name={config.name} does not begin with ma_ALPHA_ or pma_ALPHA_")
    if not variant.release_names and None not in (config.alpha, inside) and config.alpha != inside:
        raise UserError(f"alpha={config.alpha} is not that of name={config.name}; remove one")
    alpha = check_number("alpha", config.alpha if config.alpha is not None else inside)
    head = "post" if name.head_post else "base"
    plan = AveragePlan(config, variant, alpha, name.level or "block1", "released_ma", head, name.ratios or alpha)
    return replace(plan, name=name) if variant.release_names else plan


def _check_range(config: AverageConfig, plan: AveragePlan) -> None:
    """Refuse ratios beyond the two models, unless they are meant."""
    ratios = plan.ratios if isinstance(plan.ratios, tuple) else (plan.ratios,)
    found = tuple(plan.file.groups.values()) if plan.file else ratios
    for ratio in (*found, plan.base):
        if not 0 <= ratio <= 1 and "extrapolation" not in (config.allow or ()):
            raise UserError(
                f"a ratio of {ratio:g} on pre lies outside 0 to 1, beyond the two models; add allow=[extrapolation] if "
                "it is meant"
            )


def _check_count(plan: AveragePlan) -> None:
    """Refuse a wrong number of ratios before a model is opened, where the level says how many there are."""
    pivots = pivots_of(plan.level)
    found = re.fullmatch(r"(?:block|even|paper)(\d+)", plan.level)
    count = len(pivots) + 1 if pivots is not None else int(found[1]) if found and plan.level != "block3" else None
    if isinstance(plan.ratios, tuple) and count is not None and len(plan.ratios) != count:
        key = "pattern" if plan.config.pattern is not None else "ratios"
        raise UserError(
            f"{key}: {len(plan.ratios)} numbers for the {count} parts of parts={plan.level}; give one for each"
        )


def _converter(alpha_on: str) -> Callable[[float], float]:
    return (lambda ratio: ratio) if alpha_on == "pre" else (lambda ratio: round(1 - ratio, 12))


def _numbers(value: Any) -> Sequence[float]:
    if not isinstance(value, list | tuple) or not value:
        raise UserError(f"ratios={value}: give a list of numbers, one for each part, or a file")
    return [check_number("ratios", entry) for entry in value]
