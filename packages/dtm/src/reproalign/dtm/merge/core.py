"""The settings of the core's merge that a plan of dtm merge stands for."""

from __future__ import annotations

from typing import Any

from reproalign.common.errors import UserError
from reproalign.common.merging.config import MergeConfig as CoreConfig
from reproalign.dtm.merge.config import MergeConfig
from reproalign.dtm.merge.settings import CORE, SubModelMergePlan


def core_config(plan: SubModelMergePlan, output: str, **given: Any) -> CoreConfig:
    """Return the settings of the core's merge: of the average by weights (R3), by factors (R4), or another method.

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


def linear_config(plan: SubModelMergePlan, **given: Any) -> CoreConfig:
    """Return the settings of the core's average of the same models by factors (R4), or others that are ``given``."""
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
    """Return DARE's p."""
    return 0.9 if config.drop is None else config.drop


def _allowed(config: MergeConfig) -> list[str]:
    return [*(config.allow or []), *(["negative"] if config.allow_extrapolation else [])]


def _dare(plan: SubModelMergePlan) -> dict[str, Any]:
    config = plan.config
    normalize = config.normalize is not False
    return {
        "density": 1 - dropped(config),
        "normalize": normalize,
        "scale": 1.0 if config.scale is None else config.scale,
    }
