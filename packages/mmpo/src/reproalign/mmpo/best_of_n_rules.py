"""What the two kinds of best-of-n share: how the policy is asked, how reward models read, and what is selected from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reproalign.common.config.launch import LaunchConfig
from reproalign.common.config.model import LoadedModelConfig
from reproalign.common.generation.dialogues import ask_by
from reproalign.common.generation.rules import SamplingRules
from reproalign.common.generation.samplers import choose_backend
from reproalign.common.generation.samples import SCORED
from reproalign.common.models.identify import used_weights
from reproalign.common.models.kind import check_language_model, check_reward_model
from reproalign.common.records import Run
from reproalign.common.reward.model import load_reward_tokenizer
from reproalign.common.reward.rules import RewardRules, read_rules, scoring_rules
from reproalign.mmpo.best_of_n_config import BestOfNConfig

RENDERINGS = {"training": "chat", "released": "gemma-custom"}  # and the template by which the policy is asked
PROXY, GOLD = "reward.name", "gold"
NO_LIMIT = 2**31 - 1  # tokens; what a tokenizer that names no length of its own stands for


@dataclass(frozen=True)
class Judged:
    """A reward model and how it reads.

    Attributes:
        key: the option that names it.
        model: its weights and its chat template.
        rules: how it reads.
        file: of the scores.
    """

    key: str
    model: LoadedModelConfig
    rules: RewardRules
    file: str


@dataclass(frozen=True)
class Pool:
    """Scored candidates.

    Attributes:
        rewards: (prompts, candidates), by the key of the model that gave them.
        candidates: of each prompt, in order.
        write: writes the chosen candidates (prompts,) of the best of n to a file.
    """

    rewards: dict[str, NDArray[np.float64]]
    candidates: Sequence[Sequence[Any]]
    write: Callable[[int, NDArray[np.int64]], None]


def policy_rules(config: BestOfNConfig, n: int) -> tuple[LoadedModelConfig, SamplingRules]:
    """Return the policy with its chat template, and how it is asked: with training's empty system turn, or as released.

    Raises:
        UserError: for options that nothing can be sampled with.
    """
    template = RENDERINGS[config.rendering]
    model, own = ask_by(template, config.policy, "auto" if template == "chat" else None)
    rules = SamplingRules(
        n=n,
        max_new_tokens=config.max_new_tokens,
        temperature=1.0 if config.temperature is None else config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        batch_size=config.batch_size,
        **own,
    )
    rules.check()
    return model, rules


def sampling_backend(config: BestOfNConfig, policy: LoadedModelConfig, run: Run) -> str:
    """Return the backend that ``policy`` (of :func:`policy_rules`) is sampled with, and record its weights."""
    check_language_model(policy, "policy.name")
    backend = choose_backend(config.backend, LaunchConfig(), 1, policy)
    used_weights(run, "policy", config.policy.name, config.policy.revision, backend=backend)
    return backend


def reward_models(config: BestOfNConfig) -> list[Judged]:
    """Return the reward models and how they read, before anything is sampled for them."""
    found = [(PROXY, config.reward, SCORED)]
    if config.gold is not None:
        found.append((GOLD, LoadedModelConfig(name=config.gold, dtype=config.reward.dtype), f"gold-{SCORED}"))
    judged = []
    for key, model, file in found:
        check_reward_model(model, key)
        judged.append(Judged(key, *_reading(model, config, key), file))
    return judged


def _reading(model: LoadedModelConfig, config: BestOfNConfig, key: str) -> tuple[LoadedModelConfig, RewardRules]:
    """Return a reward model with its chat template, and how it reads.

    ``training``: as its ``reward.json`` says; of one without it, with the empty system turn that the release trains
    with. ``released``: as the authors scored, at the pooling of its training: an unclosed system turn, a second BOS, no
    EOS, and the tokenizer's own length.
    """
    told: dict[str, Any] = {} if config.max_length is None else {"max_length": config.max_length}
    if config.rendering == "training":
        if read_rules(model.name, model.revision) is None:
            told["system_message"] = "auto"
        return model, scoring_rules(model, told, key)
    model, own = ask_by("gemma-custom", model, None)
    limit = min(int(load_reward_tokenizer(model).model_max_length), NO_LIMIT)
    released = {"layout": "chat", "max_length": limit, "truncation_side": "right", "response_separator": "space"}
    return model, scoring_rules(model, {**released, **own, **told}, key)
