"""From the keys of ``dtm merge`` to checked settings, and to those of the core's merge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reproalign.common.errors import UserError
from reproalign.common.models.adapters import adapter_folder
from reproalign.common.models.load import model_path
from reproalign.dtm.merge.config import MergeConfig
from reproalign.dtm.merge.sub_models import sub_models
from reproalign.dtm.rules import DtmRules, rules_of

# Keys that not every method reads -> the methods that do.
READERS = {
    "aggregation": ("average", "ties"),
    "scale": ("task_arithmetic", "ties", "dare"),
    "density": ("ties",),
    "norm_fraction": ("ties",),
    "zero_signs": ("ties",),
    "trim_scope": ("ties",),
    "drop": ("dare",),
    "normalize": ("dare",),
    "statistics": ("fisher", "regmean"),
    "statistics_rows": ("fisher", "regmean"),
    "floor": ("fisher",),
    "off_diagonal": ("regmean",),
    "initial": ("task_arithmetic", "ties", "dare"),
}
# Methods of this verb -> of the core.
CORE = {
    "average": "linear",
    "task_arithmetic": "task_arithmetic",
    "ties": "ties",
    "dare": "dare_linear",
    "fisher": "fisher",
    "regmean": "regmean",
    "ensemble": "ensemble",
}
FACTORS = ("average", "task_arithmetic", "ties", "dare")  # methods that can be of factors
STAY_ADAPTERS = ("average", "task_arithmetic")  # methods whose delta-space result is an adapter
AUTO = "auto"


@dataclass(frozen=True)
class SubModelMergePlan:
    """What is to be merged, and how.

    Attributes:
        config: as given.
        rules: of the variant.
        models: folders of the sub-models.
        weights: one for each, or None.
        space: factor, delta or full.
        output: adapter or model.
        statistics: of each model; AUTO: to be computed.
    """

    config: MergeConfig
    rules: DtmRules
    models: tuple[str, ...]
    weights: tuple[float, ...] | None
    space: str
    output: str
    statistics: tuple[str, ...] | str | None


def resolve(config: MergeConfig) -> SubModelMergePlan:
    """Find the sub-models and check every key.

    Raises:
        UserError: for a sub-model that is missing, or a key that is wrong or has no meaning here.
    """
    _check_applicable(config, rules_of(config.variant))
    models = sub_models(config.models)
    return planned(config, models, [_is_adapter(model) for model in models])


def planned(config: MergeConfig, models: Sequence[str], adapters: Sequence[bool]) -> SubModelMergePlan:
    """Check every key for sub-models that need not be there yet.

    Args:
        config: of the merge.
        models: names of the sub-models.
        adapters: of each, whether it is an adapter or a full model.

    Raises:
        UserError: for a key that is wrong or has no meaning here.
    """
    rules = rules_of(config.variant)
    _check_applicable(config, rules)
    space = _space(config, rules, models, adapters)
    weights = None if config.weights is None else read_weights(config.weights, len(models))
    _check_weights(config, weights)
    return SubModelMergePlan(
        config=config,
        rules=rules,
        models=tuple(models),
        weights=None if weights is None else tuple(weights),
        space=space,
        output=_output(config, space),
        statistics=_statistics(config, models),
    )


def read_weights(value: Any, count: int) -> list[float]:
    """Read one number for each model from a list, or from the release's comma list (``--mix_ratio 1,1,1,1``).

    Raises:
        UserError: for what is no number, or another count.
    """
    words = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    try:
        found = [float(word) for word in words]
    except (TypeError, ValueError) as error:
        raise UserError(f"weights={value}: numbers are expected, one for each of the {count} models") from error
    if len(found) != count:
        raise UserError(f"weights={value}: {len(found)} numbers for {count} models; give one for each")
    return found


def _is_adapter(model: str) -> bool:
    return adapter_folder(model_path(model, "models")) is not None


def _check_applicable(config: MergeConfig, rules: DtmRules) -> None:
    if rules.merge_methods and config.method not in rules.merge_methods:
        listed = ", ".join(rules.merge_methods)
        raise UserError(f"method={config.method} is none of the authors' scripts ({listed}); set variant=paper")
    for key, readers in READERS.items():
        if getattr(config, key) is not None and config.method not in readers:
            raise UserError(
                f"{key} has no meaning for method={config.method} (only for {', '.join(readers)}); remove it"
            )
    if config.method == "dare" and config.normalize is False and config.scale is None:
        raise UserError("scale is not set; method=dare normalize=false needs the factor λ of its task vectors")
    if config.method == "task_arithmetic" and config.scale is None:
        raise UserError(
            "scale is not set; method=task_arithmetic needs λ (1/K with equal weights is the average, which the "
            "published row is not)"
        )


def _check_weights(config: MergeConfig, weights: Sequence[float] | None) -> None:
    if weights is None:
        return
    if not all(map(math.isfinite, weights)):
        raise UserError(f"weights={config.weights} must be finite numbers")
    shares = config.method not in ("task_arithmetic", "ties") and config.normalize is not False
    if shares and min(weights) < 0 and not config.allow_extrapolation:
        raise UserError(f"weights={config.weights} holds a negative one; set allow_extrapolation=true to extrapolate")
    if shares and abs(math.fsum(weights)) < 1e-12:
        raise UserError(f"weights={config.weights} sum to 0 and cannot be shares")


def _space(config: MergeConfig, rules: DtmRules, models: Sequence[str], adapters: Sequence[bool]) -> str:
    if not all(adapters):
        if any(adapters):
            pair = [models[adapters.index(kind)] for kind in (True, False)]
            raise UserError(f"models: '{pair[0]}' is an adapter and '{pair[1]}' a full model; give one kind")
        if rules.flat_factors:
            raise UserError(f"variant=released merges adapters, and '{models[0]}' is a full model; set variant=paper")
        if config.space not in (None, "full"):
            raise UserError(f"space={config.space} is for adapters, and '{models[0]}' is a full model; remove it")
        return "full"
    space = config.space or ("factor" if rules.flat_factors else "delta")
    if rules.flat_factors and space != "factor":
        raise UserError(f"space={space}: the authors' scripts merge factors; set variant=paper, or remove space")
    if space == "factor" and config.method not in FACTORS:
        raise UserError(f"space=factor has no meaning for method={config.method}; remove it")
    if space == "factor" and config.method != "average" and not rules.flat_factors:
        raise UserError(f"space=factor with method={config.method} is variant=released; set that, or space=delta")
    return space


def _output(config: MergeConfig, space: str) -> str:
    possible = space == "factor" or (space == "delta" and config.method in STAY_ADAPTERS)
    output = config.output or ("adapter" if possible else "model")
    if output == "adapter" and not possible:
        what = f"method={config.method}" if space == "delta" else f"space={space}"
        raise UserError(f"output=adapter: the result of {what} is no adapter; set output=model")
    if config.rank is not None and (output != "adapter" or space != "delta"):
        raise UserError("rank recompresses an adapter that was averaged in delta space; remove it")
    return output


def _statistics(config: MergeConfig, models: Sequence[str]) -> tuple[str, ...] | str | None:
    if "statistics" not in [key for key, readers in READERS.items() if config.method in readers]:
        return None
    value = config.statistics
    if value is None:
        raise UserError(
            f"statistics is not set; method={config.method} needs a folder of `dtm statistics` for each model, or "
            "statistics=auto"
        )
    if value == AUTO:
        return AUTO
    if config.statistics_rows is not None:
        raise UserError("statistics_rows is for statistics=auto; remove it")
    if not isinstance(value, list) or len(value) != len(models) or not all(isinstance(entry, str) for entry in value):
        raise UserError(f"statistics={value}: a list of {len(models)} folders is expected, one for each model, or auto")
    return tuple(str(Path(entry).expanduser()) for entry in value)
