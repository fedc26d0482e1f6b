"""``more-rm evaluate responses=[A,B]``: language models against each other, by rewards and by a judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rich.table import Table

from reproalign.common.console import result_console, say
from reproalign.common.errors import UserError
from reproalign.common.files import sha256_json, write_json
from reproalign.common.generation.samples import RESPONSES, Sampled, find, read_sampled, write_rows
from reproalign.common.invocation import Invocation
from reproalign.common.judging.ask import keeping_answers
from reproalign.common.judging.config import check_one_judge, check_pairrm
from reproalign.common.judging.endpoint import check_endpoint
from reproalign.common.judging.pairwise import pairrm_folder
from reproalign.common.judging.verdict import wilson
from reproalign.common.models.identify import used_weights
from reproalign.common.records import Run
from reproalign.common.reward.rules import scoring_rules, told_rules
from reproalign.common.reward.scorer import RewardScorer, check_finite
from reproalign.more.config import CompareConfig
from reproalign.more.judged import judge_pairs, judge_template

Floats = NDArray[np.float64]
RESAMPLES = 2000  # of the bootstrap


@dataclass(frozen=True)
class Mean:
    """A mean over prompts, and its percentile bootstrap interval."""

    mean: float
    low: float
    high: float


def compare_responses(config: CompareConfig, invocation: Invocation) -> None:
    """Compare files of responses to the same prompts, every two of them.

    By reward: each file's mean, and the share of the prompts on which one has the higher reward. With ``judge.model``
    or ``pairrm.model`` also by a judge, of the first response to each prompt; ``judgments-<i>-<j>.jsonl`` grows as it
    goes, and an interrupted run goes on where it stopped. ``comparison.json`` holds the numbers, ``rewards.jsonl``
    those of each prompt.
    """
    template = _check(config)
    files = [find(path, RESPONSES, "responses") for path in config.responses]
    entries = [read_sampled(path) for path in files]
    for left, right in pairwise(range(len(files))):
        check_same_prompts(entries[left], entries[right], files[left], files[right])
    labels = _labels(config.responses, files)
    with keeping_answers(), Run.open(invocation) as run:
        for label, rows in zip(labels, entries, strict=True):
            run.add_fingerprint("data", label, sha256_json([asdict(row) for row in rows]), rows=len(rows))
        used_weights(run, "reward", config.model.name, config.model.revision)
        if template:
            run.add_fingerprint("data", "judge prompt", sha256_json(template), path=config.prompts)
        rewards = _score(config, entries)
        result: dict[str, Any] = {"prompts": len(entries[0]), "files": {}, "pairs": {}}
        for label, values in zip(labels, rewards, strict=True):
            result["files"][label] = asdict(mean_interval(values.mean(1), config.confidence, config.seed))
        for i, j in combinations(range(len(labels)), 2):
            name = f"{labels[i]} against {labels[j]}"
            result["pairs"][name] = {
                "reward": reward_comparison(rewards[i], rewards[j], config.confidence, config.seed)
            }
        write_rows(
            run.dir / "rewards.jsonl",
            (
                {
                    "prompt": row.prompt,
                    "rewards": {label: v[k].tolist() for label, v in zip(labels, rewards, strict=True)},
                }
                for k, row in enumerate(entries[0])
            ),
        )
        _print_rewards(result, config.confidence)
        for name, judged in judge_pairs(config, template, entries, labels, run):
            result["pairs"][name]["judge"] = judged
        write_json(run.dir / "comparison.json", result)
        run.set_metrics(result)
        say(f"numbers: {run.dir / 'comparison.json'}")


def check_same_prompts(first: Sequence[Sampled], second: Sequence[Sampled], left: Path, right: Path) -> None:
    """Check that two files hold responses to the same prompts in the same order.

    Raises:
        UserError: naming the first row that differs, or the numbers of rows.
    """
    for number, (one, other) in enumerate(zip(first, second, strict=False), start=1):
        if one.prompt != other.prompt:
            raise UserError(
                f"row {number}: {left} and {right} have different prompts; compare responses to the same prompts, in "
                "the same order"
            )
    if len(first) != len(second):
        raise UserError(
            f"{left} and {right} have {len(first)} and {len(second)} prompts; compare responses to the same prompts"
        )


def mean_interval(values: ArrayLike, confidence: float, seed: int) -> Mean:
    """Return the mean of ``values`` (prompts,) with its percentile bootstrap interval, of RESAMPLES resamples."""
    given = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(seed)
    means = [given[generator.integers(0, len(given), len(given))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Mean(float(given.mean()), float(low), float(high))


def reward_comparison(first: ArrayLike, second: ArrayLike, confidence: float, seed: int) -> dict[str, Any]:
    """Compare the rewards of two models.

    Args:
        first: (prompts, n) rewards of one model's responses.
        second: (prompts, m) of the other's.
        confidence: of the intervals.
        seed: of the bootstrap.

    Returns:
        ``higher``: the mean over prompts of the share of pairs (response of first, response of second) where the first
        has the higher reward, equal rewards counting half; for one response each, the share of prompts. ``low`` and
        ``high``: its Wilson interval, which is too wide rather than too narrow for more. ``difference``: of the mean
        rewards, with its bootstrap interval over prompts.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    gaps = a[:, :, None] - b[:, None, :]
    shares = ((gaps > 0) + 0.5 * (gaps == 0)).mean((1, 2))
    low, high = wilson(float(shares.sum()), len(shares), confidence)
    difference = mean_interval(a.mean(1) - b.mean(1), confidence, seed)
    return {"higher": float(shares.mean()), "low": low, "high": high, "difference": asdict(difference)}


def _check(config: CompareConfig) -> str | None:
    """Check the settings; return the judge's template if one is to be asked."""
    if len(config.responses) < 2:
        raise UserError("responses needs two or more files of `more-rm sample`, as in responses=[A,B]")
    check_endpoint(config.judge, "judge")
    check_pairrm(config.pairrm)
    check_one_judge({"judge.model": config.judge.model, "pairrm.model": config.pairrm.model})
    if config.pairrm.model and (config.template or config.prompts):
        raise UserError("template and prompts are for a judge that reads questions, and PairRM reads none")
    if config.pairrm.model:
        pairrm_folder(config.pairrm)  # not after hours of scoring
    return judge_template(config)


def _labels(given: Sequence[str], files: Sequence[Path]) -> list[str]:
    """Name files by their folders if these tell them apart, else as they were given."""
    if len({path.resolve() for path in files}) < len(files):
        raise UserError(f"responses={list(given)} names one file twice; name each once")
    names = [path.resolve().parent.name if path.name == RESPONSES else path.stem for path in files]
    return names if len(set(names)) == len(names) else [str(path) for path in given]


def _score(config: CompareConfig, entries: Sequence[Sequence[Sampled]]) -> list[Floats]:
    """Return the rewards of each file, (prompts, its n)."""
    rules = scoring_rules(config.model, told_rules(config.model, config.text, config.variant))
    scorer = RewardScorer(config.model, rules, batch_size=config.batch_size)
    rewards = []
    for rows in entries:
        given = check_finite(scorer([text for row in rows for text in row.dialogues()]), config.model)
        rewards.append(np.asarray(given, dtype=np.float64).reshape(len(rows), -1))
    return rewards


def _print_rewards(result: dict[str, Any], confidence: float) -> None:
    means = Table(f"{result['prompts']} prompts", "mean reward", f"interval at {confidence:.0%}", header_style="bold")
    for label, entry in result["files"].items():
        means.add_row(label, f"{entry['mean']:.4f}", f"[{entry['low']:.4f}, {entry['high']:.4f}]")
    shares = Table("by reward", "higher reward", "interval", "mean difference", "interval", header_style="bold")
    for name, pair in result["pairs"].items():
        entry, gap = pair["reward"], pair["reward"]["difference"]
        shares.add_row(
            name,
            f"{entry['higher']:.4f}",
            f"[{entry['low']:.4f}, {entry['high']:.4f}]",
            f"{gap['mean']:.4f}",
            f"[{gap['low']:.4f}, {gap['high']:.4f}]",
        )
    for table in (means, shares):
        result_console().print(table)
