"""What is seen of a run: numbers of an iteration, signs of a collapse, samples, curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from reproalign.ama.align.online.rollouts import Rollout
from reproalign.common.data.records import Message
from reproalign.common.evaluation.plots import MeanCurve, comparison
from reproalign.common.generation.samples import write_rows

SENTENCE_ENDS = (".", "!", "?", "…", ":", '"', "'", "”", "’", ")", "]", "}", "`", "*")
PANELS = {  # title -> metrics that are drawn together
    "mean reward": ("reward",),
    "shaped reward": ("shaped_reward",),
    "KL to π_0 (nats per response)": ("kl",),
    "tokens of a response": ("length",),
    "share of responses": ("cut_sentences", "limit_reached"),
    "entropy (nats per token)": ("entropy",),
    "value loss": ("value_loss",),
    "explained variance of the returns": ("explained_variance",),
    "share of tokens clipped": ("clip_fraction", "value_clip_fraction"),
}


def describe(rollouts: Sequence[Rollout], *, baseline: float, eta: float) -> dict[str, float]:
    """Return the numbers of an iteration's responses.

    ``reward`` is the mean of the reward model, with its standard deviation and error; ``shaped_reward`` the mean of
    r - baseline - η KL; ``kl`` the estimate of the KL to π_0 of a response; ``entropy`` that of the policy per token
    (-log π of what it drew); ``cut_sentences`` the share of responses that do not end like a sentence;
    ``limit_reached`` the share that the limit of tokens ended; ``empty`` that of responses without text.
    """
    rewards = [rollout.reward for rollout in rollouts]
    deviation = stdev(rewards) if len(rewards) > 1 else 0.0
    tokens = sum(len(rollout.response_ids) for rollout in rollouts)
    kl = fmean(rollout.kl for rollout in rollouts)
    return {
        "reward": fmean(rewards),
        "reward_std": deviation,
        "reward_stderr": deviation / len(rewards) ** 0.5,
        "reward_baseline": baseline,
        "shaped_reward": fmean(rewards) - baseline - eta * kl,
        "kl": kl,
        "kl_coef": eta,
        "entropy": -sum(float(rollout.logps.sum()) for rollout in rollouts) / tokens,
        "length": tokens / len(rollouts),
        "cut_sentences": fmean(not rollout.text.endswith(SENTENCE_ENDS) for rollout in rollouts),
        "limit_reached": fmean(not rollout.ended for rollout in rollouts),
        "empty": fmean(not rollout.text for rollout in rollouts),
    }


def collapse_signs(history: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the signs of a collapse that the last iteration shows, in words; none after the first.

    The paper names shorter answers, cut sentences and a falling reward (appendix D); a KL below -1 nat says that the
    estimate, and with it the penalty, has gone wrong. The thresholds are ours: half the first iteration's length, 20
    percentage points more cut sentences, three standard errors of the difference below the best mean reward.
    """
    if len(history) < 2:
        return []
    first, last = history[0], history[-1]
    best = max(history, key=lambda row: float(row["reward"]))
    signs = []
    if last["reward"] < best["reward"] - 3 * math.hypot(last["reward_stderr"], best["reward_stderr"]):
        signs.append(f"the reward is {last['reward']:.3f}, after {best['reward']:.3f} in iteration {best['step']}")
    if last["length"] < 0.5 * first["length"]:
        signs.append(f"responses have {last['length']:.0f} tokens, after {first['length']:.0f} at first")
    if last["cut_sentences"] > first["cut_sentences"] + 0.2:
        signs.append(f"{last['cut_sentences']:.0%} end within a sentence, after {first['cut_sentences']:.0%} at first")
    if last["kl"] < -1:
        signs.append(f"the KL is estimated as {last['kl']:.2f}")
    return signs


def write_samples(path: Path, rollouts: Sequence[Rollout], prompts: Sequence[list[Message]], count: int) -> None:
    """Write the first ``count`` responses of an iteration as rows: prompt, response, reward, KL, tokens, ended."""
    rows = [
        {
            "prompt": prompts[rollout.prompt],
            "response": rollout.text,
            "reward": rollout.reward,
            "kl": rollout.kl,
            "tokens": len(rollout.response_ids),
            "ended": rollout.ended,
        }
        for rollout in rollouts[:count]
    ]
    write_rows(path, rows)


def draw(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the numbers of :data:`PANELS` over the iterations."""
    steps = [int(row["step"]) for row in history]
    panels = {}
    for title, names in PANELS.items():
        curves = {name.replace("_", " "): [float(row[name]) for row in history] for name in names}
        panels[title] = {name: MeanCurve(steps, values, values, values) for name, values in curves.items()}
    comparison(panels, path, across="iteration")


def summary(history: Sequence[Mapping[str, Any]]) -> dict[str, float | int]:
    """Return the final metrics of a run: where it began, where it ended, and the iteration of the best reward."""
    first, last = history[0], history[-1]
    best = max(history, key=lambda row: float(row["reward"]))
    ends = {f"{name}_last": last[name] for name in ("reward", "kl", "length", "cut_sentences", "explained_variance")}
    return {
        "iterations": last["step"],
        "reward_first": first["reward"],
        "reward_best": best["reward"],
        "best_iteration": best["step"],
        **ends,
        "iterations_with_collapse_signs": sum(row["collapse_signs"] > 0 for row in history),
    }
