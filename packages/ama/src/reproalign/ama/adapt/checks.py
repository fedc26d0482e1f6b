"""Which options of ``ama adapt`` go together: everything that can be refused without opening a model."""

from __future__ import annotations

from typing import Any

from omegaconf import MISSING

from reproalign.ama.adapt.config import AdaptConfig
from reproalign.common.errors import UserError


def check_models(config: AdaptConfig) -> None:
    """Refuse what is of a single model, or of weights that are not held merged.

    Raises:
        UserError: naming the key.
    """
    if config.model.name not in ("", MISSING):
        raise UserError("model.name has no meaning here: the models are pre and post; remove it")
    if config.model.quantization:
        raise UserError("model.quantization has no meaning here: weights are merged; remove it")
    if config.launch.strategy.startswith("zero"):
        raise UserError(f"launch.strategy={config.launch.strategy} is not for merged weights; use launch=ddp or fsdp")


def check_released(config: AdaptConfig, solver: str) -> None:
    """Refuse what the release has no counterpart of.

    Raises:
        UserError: naming the key.
    """
    if solver != "published":
        raise UserError(f"variant=released is the release's optimiser, not solver={solver}; set variant=paper")
    if config.parts == "linearwise":
        raise UserError(
            "variant=released: parts=linearwise normalises by nothing there, so that every ratio is NaN; take "
            "variant=paper or other parts"
        )
    fixed = {"constraint": "mean", "normalisation": "mean", "bounds": "none", "tensors": "linear_head_pre"}
    for key, value in fixed.items():
        if getattr(config, key) not in (None, value):
            raise UserError(f"variant=released has {key}={value}, not {getattr(config, key)}; set variant=paper")
    if config.launch.strategy not in ("single", "auto"):
        raise UserError(
            "variant=released: every process optimised ratios of its own there, and one process's are saved; "
            "set launch=single and published.processes for how many shared the rows"
        )


def check_epsilons(given: Any) -> tuple[float, ...]:
    """Return the values of ε that are given, one or several.

    Raises:
        UserError: for anything that is no number, and a value that is given twice.
    """
    values = list(given) if isinstance(given, list | tuple) else [given]
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UserError(f"epsilon={given}: each value must be a number")
    if not values or len(set(values)) < len(values):
        raise UserError(f"epsilon={given}: give one value, or several different ones")
    return tuple(float(value) for value in values)


def check_rows(config: AdaptConfig, objective: str) -> None:
    """Check where the rows come from, and how many are used.

    Raises:
        UserError: naming the key.
    """
    if objective == "reward":
        for key in ("rows", "max_rows"):
            if getattr(config, key) is not None:
                raise UserError(f"{key} has no meaning for objective=reward, which samples on prompts; remove it")
    elif config.rows is None:
        hint = "rows of prompt and response" if objective == "labelled" else "a run of `ama collect`, or its file"
        raise UserError(f"rows is not set; give {hint}")
    if objective == "reward" and config.eval_fraction:
        raise UserError("eval_fraction has no meaning for objective=reward, which has no rows; remove it")


def check_reward(config: AdaptConfig, objective: str, *, several: bool) -> None:
    """Check that a reward is measured where one is needed, and nowhere else.

    Raises:
        UserError: naming the key.
    """
    wanted = {"reward": config.reward, "prompts": config.prompts}
    missing = [key for key, value in wanted.items() if value is None]
    if objective == "reward":
        if missing:
            raise UserError(f"{missing[0]} is not set; objective=reward measures the reward of averages on prompts")
        if several:
            raise UserError("epsilon: objective=reward takes one value; the search needs no parametrisation")
    elif len(missing) == 1:
        raise UserError(f"{missing[0]} is not set; reward and prompts choose epsilon together")
    elif several and missing and not config.eval_fraction:
        raise UserError(
            "epsilon: several values are compared on what is held out; set eval_fraction=0.1, or reward and prompts"
        )
    elif not missing and not several:
        raise UserError("reward and prompts choose between several values of epsilon, and there is one; remove them")
    if not missing and config.launch.strategy not in ("single", "auto"):
        raise UserError("launch: measuring a reward starts runs of its own; set evaluate.launch.strategy instead")
    if missing and (config.average or config.evaluate):
        raise UserError("average.* and evaluate.*: nothing is averaged and evaluated without reward; remove them")
