"""What ``ama frontier`` refuses in its own options, before a child is composed."""

from __future__ import annotations

import math
import re
from typing import Any

from reproalign.ama.frontier.config import FrontierConfig, LearnedSweep
from reproalign.ama.frontier.sweeps import PRE, levels_count
from reproalign.ama.levels import check_level
from reproalign.ama.parts import ALIASES
from reproalign.ama.points import METHODS
from reproalign.common.errors import UserError, choose

MODEL_KEYS = ("model", "algorithm", "method", "parameter", "value", "series")
AVERAGED = ("pre", "post", "ma", "part", "pattern")  # methods that frontier makes itself


def check_settings(config: FrontierConfig) -> None:
    """Check the options of the frontier itself; those of the children are checked when they are composed.

    Raises:
        UserError: naming the key.
    """
    if config.seed == 2**32 - 1:
        raise UserError(f"seed={config.seed}: the noise floor takes the next one, which there is none; give another")
    if config.model.name:
        raise UserError("model.name has no meaning here: the models are pre, post and models; remove it")
    _check_posts(config)
    _check_sweeps(config)
    _check_evaluations(config)
    for name, given in config.models.items():
        _check_model(name, given, config)


def _check_posts(config: FrontierConfig) -> None:
    if not config.post:
        raise UserError("post={} names no model; give post={rsf: FOLDER}")
    for name, path in config.post.items():
        _check_name("post", name)
        if not path:
            raise UserError(f"post.{name} is empty; give a folder or a Hub id")


def _check_name(section: str, name: str) -> None:
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(f"{section}.{name}: folders are named by it; use letters, digits, dots and dashes")
    if name == PRE:
        raise UserError(f"{section}.{name}: '{PRE}' is the model before alignment; choose another name")


def _check_sweeps(config: FrontierConfig) -> None:
    if not config.alphas:
        raise UserError("alphas=[] names no ratio; give some, e.g. [0,0.2,0.4,1]")
    if config.parts.parts:
        check_level(config.parts.level)
    for part in config.parts.parts:
        if part in ALIASES and levels_count(config.parts.level) not in ("3", ""):
            raise UserError(
                f"parts.parts: {part} is one of three parts, and parts.level={config.parts.level} has "
                f"{levels_count(config.parts.level)}; name parts by their numbers from 0"
            )
        if part not in ALIASES and not part.isdecimal():
            raise UserError(f"parts.parts: '{part}' is no part; give input, middle, output, or a number from 0")
    if config.patterns.offsets:
        check_level(config.patterns.level)
    for offsets in config.patterns.offsets:
        _check_pattern(offsets, config.patterns.level)
    for name in ("hma", "adamerging"):
        _check_learned(name, getattr(config, name), config)


def _check_pattern(offsets: Any, level: str) -> None:
    numbers = isinstance(offsets, list) and all(
        isinstance(offset, int | float) and not isinstance(offset, bool) and math.isfinite(offset) for offset in offsets
    )
    if not numbers:
        raise UserError(f"patterns.offsets: {offsets} is no list of numbers; write [[0,-0.1,-0.1]]")
    count = levels_count(level)
    if count and len(offsets) != int(count):
        raise UserError(f"patterns.offsets: {len(offsets)} offsets for the {count} parts of patterns.level={level}")


def _check_learned(name: str, sweep: LearnedSweep, config: FrontierConfig) -> None:
    for level in sweep.levels:
        check_level(level)
    if not sweep.levels:
        if sweep.rows or sweep.adapt:
            raise UserError(f"{name}.levels=[] learns nothing; give levels, e.g. [block3], or remove {name}.*")
        return
    for post in sweep.rows:
        choose(f"post model in {name}.rows", post, config.post)
    missing = [post for post in config.post if post not in sweep.rows]
    if missing and sweep.adapt.get("objective") != "reward":
        what = "D_θ, a run of `ama collect`" if name == "hma" else "rows with labelled answers"
        raise UserError(f"{name}.rows.{missing[0]} is not set; give its {what}")


def _check_evaluations(config: FrontierConfig) -> None:
    if not config.evaluate.get("prompts"):
        raise UserError("evaluate.prompts is not set; give the held-out prompts that responses are sampled to")
    if config.x == "reward":
        if not config.evaluate.get("reward"):
            raise UserError("evaluate.reward is not set; give the reward model, or set x=win_rate with a judge")
        if config.win_rate.judge or config.win_rate.against is not None:
            raise UserError("win_rate.* is read with x=win_rate alone; set it, or leave these keys out")
    elif not config.win_rate.judge:
        raise UserError(
            "win_rate.judge is not set; give a judge, e.g. win_rate.judge={pairrm: {model: llm-blender/PairRM}}"
        )
    if config.benchmarks and not config.evaluate_on:
        raise UserError("benchmarks.*: there is no suite to evaluate on; set evaluate_on=ama, or remove it")


def _check_model(name: str, given: Any, config: FrontierConfig) -> None:
    """Check one of ``models``."""
    key = f"models.{name}"
    _check_name("models", name)
    if name in config.post:
        raise UserError(f"{key}: post.{name} is called so too; rename one")
    if not isinstance(given, dict):
        raise UserError(f"{key} is a mapping; write {key}={{model: FOLDER, method: l2, value: 0.01}}")
    for entry in given:
        choose(f"key of {key}", entry, MODEL_KEYS)
    for entry in ("model", "method"):
        if not given.get(entry):
            raise UserError(f"{key}.{entry} is not set; a model needs its folder (model) and what was done (method)")
    choose(f"{key}.method", str(given["method"]), [method for method in METHODS if method not in AVERAGED])
    if given.get("algorithm"):
        choose(f"{key}.algorithm", str(given["algorithm"]), config.post)
