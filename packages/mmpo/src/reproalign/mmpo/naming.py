"""The release's names for run folders."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Literal

from transformers import TrainingArguments

from reproalign.mmpo.config import PreferenceConfig, RewardConfig


def run_name(
    kind: Literal["dpo", "rm"],
    *,
    batch_size: int,
    learning_rate: Any,
    num_train_epochs: Any,
    seed: int,
    beta: Any = None,
    bt_beta: Any = None,
    filter_threshold: Any = None,
    max_steps: int = -1,
) -> str:
    """Return e.g. ``b64-lr5e-07-e3-b0.01-btb1.1-ftn-seed42``; numbers appear as Python prints them.

    Args:
        kind: ``rm`` names have the step limit in place of beta and threshold.
        batch_size: the global batch (the release uses the number of visible GPUs, which may differ; ERRATA Q21).
        learning_rate: peak learning rate.
        num_train_epochs: epochs; 3 and 3.0 give different names.
        seed: of the run.
        beta: DPO temperature.
        bt_beta: gamma; null and 0 are written ``inf``.
        filter_threshold: null and negative values are written ``n``.
        max_steps: negative is written 0.
    """
    gamma = f"btb{bt_beta or 'inf'}"
    if kind == "rm":
        parts = [f"s{max(0, max_steps)}", f"e{num_train_epochs}", gamma]
    else:
        unset = filter_threshold is None or filter_threshold < 0
        parts = [f"e{num_train_epochs}", f"b{beta}", gamma, f"ft{'n' if unset else filter_threshold}"]
    return "-".join([f"b{batch_size}", f"lr{learning_rate}", *parts, f"seed{seed}"])


def released_name(config: PreferenceConfig | RewardConfig) -> str:
    """Return the released name of a configured run."""
    trainer = {**_DEFAULTS, **config.trainer}
    batch = trainer["per_device_train_batch_size"] * trainer["gradient_accumulation_steps"] * config.launch.processes
    beta = config.loss.beta if isinstance(config, PreferenceConfig) else None
    return run_name(
        "rm" if beta is None else "dpo",
        batch_size=batch,
        learning_rate=trainer["learning_rate"],
        num_train_epochs=trainer["num_train_epochs"],
        seed=config.seed,
        beta=beta,
        bt_beta=config.target.gamma,
        filter_threshold=config.target.filter_threshold,
        max_steps=trainer["max_steps"],
    )


_DEFAULTS = {field.name: field.default for field in fields(TrainingArguments)}
