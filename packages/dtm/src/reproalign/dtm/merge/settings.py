"""From the keys of ``dtm merge`` to checked settings, and to those of the core's merge."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reproalign.common.errors import UserError, choose
from reproalign.common.merging.config import MergeConfig as CoreConfig
from reproalign.common.models.adapters import adapter_folder
from reproalign.common.models.load import model_path
from reproalign.dtm.merge.config import MergeConfig
from reproalign.dtm.merge.sub_models import sub_models

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
RELEASED = ("average", "task_arithmetic", "ties", "dare")
ONE_VARIANT = {
    **dict.fromkeys(("aggregation", "norm_fraction", "zero_signs", "initial"), "released"),
    "trim_scope": "paper",
}
STAY_ADAPTERS = ("average", "task_arithmetic")  # methods whose delta-space result is an adapter
AUTO = "auto"


@dataclass(frozen=True)
class Plan:
    """What is to be merged, and how.

    Attributes:
        config: as given.
        models: folders of the sub-models.
        weights: one for each, or None.
        space: factor, delta or full.
        output: adapter or model.
        statistics: of each model; AUTO: to be computed.
    """

    config: MergeConfig
    models: tuple[str, ...]
    weights: tuple[float, ...] | None
    space: str
    output: str
    statistics: tuple[str, ...] | str | None


def resolve(config: MergeConfig) -> Plan:
    """Find the sub-models and check every key.

    Raises:
        UserError: for a sub-model that is missing, or a key that is wrong or has no meaning here.
    """
    _check_applicable(config)
    models = sub_models(config.models)
    return planned(config, models, [_is_adapter(model) for model in models])


def planned(config: MergeConfig, models: Sequence[str], adapters: Sequence[bool]) -> Plan:
    """Check every key for sub-models that need not be there yet.

    Args:
        config: of the merge.
        models: names of the sub-models.
        adapters: of each, whether it is an adapter or a full model.

    Raises:
        UserError: for a key that is wrong or has no meaning here.
    """
    _check_applicable(config)
    space = _space(config, models, adapters)
    weights = None if config.weights is None else read_weights(config.weights, len(models))
    _check_weights(config, weights)
    return Plan(
        config=config,
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


def core_config(plan: Plan, output: str, **given: Any) -> CoreConfig:
    """Return the settings of the core's merge.

    Args:
        plan: of this verb.
        output: adapter or model.
        **given: further keys, or others than the plan's.
    """
    config = plan.config
    made: dict[str, Any] = {
        "output_dir": config.output_dir,
        "method": CORE[config.method],
        "models": list(plan.models),
        "base": config.base,
        "weights": None if plan.weights is None else list(plan.weights),
        "statistics": list(plan.statistics) if isinstance(plan.statistics, tuple) else None,
        "output": output,
        "space": plan.space if output == "adapter" else None,
        "allow": _allowed(config),
        **{key: getattr(config, key) for key in ("rank", "scale", "density", "trim_scope", "floor", "off_diagonal")},
        **{key: getattr(config, key) for key in ("seed", "dtype", "accumulate", "shard_size", "threads", "verify")},
    }
    if config.method == "ensemble":
        _check_ensemble(config)
        made["output"] = None
    if config.method == "ties":
        made["trim_scope"] = config.trim_scope or "model"
    if config.method == "dare":
        made |= _dare(plan)
    return CoreConfig(**made | given)


def _check_ensemble(config: MergeConfig) -> None:
    for key in ("space", "output", "rank", "dtype", "accumulate"):
        if getattr(config, key) is not None and (key, getattr(config, key)) != ("output", "model"):
            raise UserError(f"{key} has no meaning for method=ensemble, which writes no weights; remove it")


def linear_config(plan: Plan, **given: Any) -> CoreConfig:
    """Return the settings of the core's average of the same models by factors, or others that are ``given``."""
    keys = ("output_dir", "base", "dtype", "accumulate", "shard_size", "threads", "verify")
    same = {key: getattr(plan.config, key) for key in keys}
    average = plan.config.method == "average"
    made = {
        "models": list(plan.models),
        "weights": list(plan.weights) if plan.weights is not None and average else None,
        "output": "adapter",
        "space": "factor",
        "allow": _allowed(plan.config),
    }
    return CoreConfig(**(same | made | given))


def dropped(config: MergeConfig) -> float:
    """Return DARE's p.

    Raises:
        UserError: outside [0, 1).
    """
    drop = 0.9 if config.drop is None else config.drop
    if not 0 <= drop < 1:
        raise UserError(f"drop={drop} must be at least 0 and below 1")
    return drop


def _is_adapter(model: str) -> bool:
    path = model_path(model, "models")
    if not Path(path).is_dir() and path.count("/") > 1:  # a Hub id is name or owner/name
        raise UserError(f"models: '{model}': no such folder")
    return adapter_folder(path) is not None


def _allowed(config: MergeConfig) -> list[str]:
    return [*(config.allow or []), *(["negative"] if config.allow_extrapolation else [])]


def _dare(plan: Plan) -> dict[str, Any]:
    config = plan.config
    normalize = config.normalize is not False
    return {
        "density": 1 - dropped(config),
        "normalize": normalize,
        "scale": 1.0 if config.scale is None else config.scale,
    }


def _check_applicable(config: MergeConfig) -> None:
    if config.variant == "released" and config.method not in RELEASED:
        raise UserError(
            f"method={config.method} is none of the authors' scripts ({', '.join(RELEASED)}); set variant=paper"
        )
    for key, readers in READERS.items():
        if getattr(config, key) is not None and config.method not in readers:
            raise UserError(
                f"{key} has no meaning for method={config.method} (only for {', '.join(readers)}); remove it"
            )
    for key, variant in ONE_VARIANT.items():
        if getattr(config, key) is not None and config.variant != variant:
            raise UserError(f"{key} is of variant={variant} alone; set that, or remove {key}")
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


def _space(config: MergeConfig, models: Sequence[str], adapters: Sequence[bool]) -> str:
    if not all(adapters):
        if any(adapters):
            pair = [models[adapters.index(kind)] for kind in (True, False)]
            raise UserError(f"models: '{pair[0]}' is an adapter and '{pair[1]}' a full model; give one kind")
        if config.variant == "released":
            raise UserError(f"variant=released merges adapters, and '{models[0]}' is a full model; set variant=paper")
        if config.space not in (None, "full"):
            raise UserError(f"space={config.space} is for adapters, and '{models[0]}' is a full model; remove it")
        return "full"
    space = choose(
        "space", config.space or ("factor" if config.variant == "released" else "delta"), ["factor", "delta", "full"]
    )
    if config.variant == "released" and space != "factor":
        raise UserError(f"space={space}: the authors' scripts merge factors; set variant=paper, or remove space")
    if space == "factor" and config.method not in ("average", *RELEASED):
        raise UserError(f"space=factor has no meaning for method={config.method}; remove it")
    if space == "factor" and config.method != "average" and config.variant == "paper":
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
