"""What the options of ``ama align sft`` come to under a variant, and which of them contradict each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reproalign.ama.align.averaging import check_averaging
from reproalign.ama.align.config import PenaltyConfig, SFTConfig
from reproalign.ama.align.packing import GROUP
from reproalign.ama.align.sft_data import TextRules
from reproalign.ama.align.weight_penalty import WeightPenalty
from reproalign.ama.rules import rules_of
from reproalign.common.errors import UserError
from reproalign.common.text.templates import check_separator

PENALTIES = ("none", "l1", "l2", "kd", "kl")


@dataclass(frozen=True)
class SFTSettings:
    """What the options come to, with nothing left open."""

    text: TextRules
    normalisation: str
    weights: WeightPenalty | None
    distance: tuple[str, str] | None  # statistic and reduction of a penalty on distributions


def check_options(config: SFTConfig) -> SFTSettings:
    """Check what can be checked without rows and model, for files that need not be there yet.

    Returns:
        What null options come to under ``config.variant``.

    Raises:
        UserError: naming the key.
    """
    if not config.rows:
        raise UserError("rows: at least one file of rows is needed, e.g. rows=[sft.jsonl]")
    if config.eval_rows and config.eval_fraction:
        raise UserError("eval_rows and eval_fraction both say what is held out; give one")
    variant = rules_of(config.variant)
    normalisation = config.normalisation or variant.normalisation
    check_averaging(config.averaging)
    _check_replay(config)
    _check_stopping(config)
    weights, distance = check_penalty(config.penalty, variant.penalty, strategy=config.launch.strategy)
    if config.model.dtype == "float16" and not config.model.lora.enabled:
        raise UserError(
            "model.dtype=float16 cannot be trained itself (its gradients cannot be unscaled); set model.dtype=float32 "
            "or bfloat16, or model.lora.enabled=true, whose adapters are float32"
        )
    return SFTSettings(_text_rules(config, blocks=variant.blocks), normalisation, weights, distance)


def check_penalty(
    config: PenaltyConfig, defaults: Mapping[str, Any], *, strategy: str
) -> tuple[WeightPenalty | None, tuple[str, str] | None]:
    """Return the penalty on weights, and statistic and reduction of that on distributions; at most one of them.

    Args:
        config: of the penalty.
        defaults: ``penalty`` of :class:`reproalign.ama.rules.AmaRules`.
        strategy: of the launch.

    Raises:
        UserError: for a key that the named penalty has not got, or a value out of its range.
    """
    name = config.name
    own = {"l1": ("scale", "mean"), "l2": ("scale", "mean", "squared"), "kd": ("distance", "reduction")}
    known = own.get(name, ("reduction",) if name == "kl" else ())
    for key in ("weight", "scale", "mean", "squared", "distance", "reduction"):
        if getattr(config, key) is not None and key not in known and not (key == "weight" and name != "none"):
            raise UserError(f"penalty.{key} has no meaning with penalty.name={name}; remove it")
    if name == "none":
        return None, None
    if config.weight is None:
        raise UserError(f"penalty.name={name} needs penalty.weight, its λ; 0 is the control without force")
    if name in ("l1", "l2"):
        if strategy.startswith("zero"):
            raise UserError(
                f"penalty.name={name} is added to the gradients, which DeepSpeed keeps to itself; use "
                f"launch=single, ddp or fsdp, not launch.strategy={strategy}"
            )
        scale = defaults["scale"][name] if config.scale is None else config.scale
        mean = defaults["mean"] if config.mean is None else config.mean
        squared = defaults["squared"] if config.squared is None else config.squared
        order = int(name[1])
        return WeightPenalty(order, config.weight * scale, mean=mean, root=order == 2 and not squared), None
    reduction = config.reduction or defaults["reduction"]
    if name == "kl":
        return None, ("reverse_kl", reduction)
    distance = config.distance or defaults["distance"]
    return None, ({"kl": "forward_kl", "mse": "risk"}[distance], reduction)


def _text_rules(config: SFTConfig, *, blocks: bool) -> TextRules:
    check_separator(config.layout, config.response_separator)
    packing = config.packing or ("blocks" if blocks or config.block_size is not None else "none")
    default = "all" if packing == "blocks" else "response"
    loss_on = config.loss_on or default
    if packing == "none":
        for key in ("block_size", "group_size"):
            if getattr(config, key) is not None:
                raise UserError(f"{key} is of packing=blocks; remove it, or set packing=blocks")
    group = GROUP if config.group_size is None else config.group_size
    if packing == "blocks" and config.max_length != SFTConfig.max_length:
        raise UserError("max_length is of packing=none; blocks have block_size")
    return TextRules(
        packing, loss_on, config.layout, config.response_separator, config.block_size, group, config.max_length
    )


def _check_replay(config: SFTConfig) -> None:
    replay = config.replay
    if not replay.rows:
        if replay.ratio is not None:
            raise UserError("replay.ratio has no meaning without replay.rows=[FILE], the pre-training texts")
        return
    if replay.ratio is None:
        raise UserError("replay.rows needs replay.ratio, the tokens of texts per token of the rows")


def _check_stopping(config: SFTConfig) -> None:
    stopping = config.early_stopping
    if stopping.patience is None:
        if stopping.threshold:
            raise UserError("early_stopping.threshold has no meaning without early_stopping.patience")
    elif not config.eval_rows and not config.eval_fraction:
        raise UserError("early_stopping needs held-out rows; set eval_rows=[FILE] or eval_fraction")
    best = stopping.patience is not None or config.trainer.get("load_best_model_at_end")
    if best and config.averaging.name != "none":
        raise UserError(
            f"averaging.name={config.averaging.name} ends with the average, early_stopping and "
            "trainer.load_best_model_at_end with one checkpoint; use one of them"
        )
