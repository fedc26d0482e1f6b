"""The precision of a training run as its configuration says it, the same under every launcher.

``model.dtype`` is the dtype in which trainable weights are held and updated, hence that of the optimiser's states too;
``trainer.bf16`` and ``trainer.fp16`` compute in 16 bits under autocast beside it:

==================  ================  ==========================================================
``model.dtype``     ``trainer.bf16``  what is trained
==================  ================  ==========================================================
``float32``         ``true``          float32 master weights and states, computed in bfloat16
``float32``         ``false``         everything in float32
``bfloat16``        ``false``         everything in bfloat16, without master weights
``bfloat16``        ``true``          refused, unless the trainable weights are adapters (float32)
==================  ================  ==========================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reproalign.common.errors import UserError

HALF = {"bf16": "bfloat16", "fp16": "float16"}


def autocast_dtype(trainer: Mapping[str, Any]) -> str | None:
    """Return the dtype that ``trainer.*`` computes in under autocast, None where it does not."""
    return next((dtype for key, dtype in HALF.items() if trainer.get(key) is True), None)


def held_dtype(dtype: str, trainer: Mapping[str, Any], *, adapters: bool) -> str:
    """Return the dtype that a run's weights are read in: ``auto`` beside autocast is float32.

    Args:
        dtype: ``model.dtype``.
        trainer: ``trainer.*``.
        adapters: adapters are trained, which are held in float32 on a base of any dtype.

    Raises:
        UserError: for 16-bit weights beside autocast: DDP would train them as they are, FSDP and ZeRO float32 copies.
    """
    compute = autocast_dtype(trainer)
    if compute is None or adapters:
        return dtype
    if dtype in HALF.values():
        key = next(key for key, name in HALF.items() if name == compute)
        raise UserError(
            f"model.dtype={dtype} with trainer.{key}=true means float32 master weights under some launchers and none "
            f"under others; set model.dtype=float32 (masters, computed in {compute}) or trainer.{key}=false "
            f"(everything in {dtype})"
        )
    return "float32" if dtype == "auto" else dtype


def settle_precision(config: dict[str, Any]) -> dict[str, Any]:
    """Return the resolved configuration of a training run with ``model.dtype`` settled by :func:`held_dtype`.

    Raises:
        UserError: likewise, and for what DeepSpeed would hold otherwise than the other launchers.
    """
    model, strategy = config["model"], config["launch"]["strategy"]
    adapters = bool(model["lora"]["enabled"])
    dtype = held_dtype(model["dtype"], config["trainer"], adapters=adapters)
    if strategy.startswith("zero") and autocast_dtype(config["trainer"]) is None:
        _check_deepspeed(strategy, dtype, adapters=adapters)
    return {**config, "model": {**model, "dtype": dtype}}


def _check_deepspeed(strategy: str, dtype: str, *, adapters: bool) -> None:
    """Refuse what DeepSpeed holds in float32 where the other launchers would not, without autocast."""
    allowed = ["float32"] if adapters or strategy == "zero3-offload" else ["float32", "bfloat16"]
    if dtype not in allowed:
        raise UserError(
            f"model.dtype={dtype} without trainer.bf16 cannot be held under launch.strategy={strategy} as it is under "
            f"the other launchers; set model.dtype={' or '.join(allowed)}, or trainer.bf16=true with float32 weights"
        )
