"""``mmpo best-of-n``: the paper's use of its reward models. Sample from a policy, score, keep the best of n."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from reproalign.common.console import result_console
from reproalign.common.errors import UserError
from reproalign.common.files import sha256_json
from reproalign.common.generation.best_of_n import best_of_n, sizes
from reproalign.common.generation.prompt_files import read_prompts
from reproalign.common.generation.samplers import SAMPLERS
from reproalign.common.generation.samples import SELECTED, Sampled, write_rows
from reproalign.common.generation.sampling import sample_responses
from reproalign.common.invocation import Invocation
from reproalign.common.models.identify import used_weights
from reproalign.common.records import Run
from reproalign.common.verbs.sample import VLLM_CHUNK
from reproalign.common.verbs.score import score_responses
from reproalign.mmpo.best_of_n_config import BestOfNConfig
from reproalign.mmpo.best_of_n_dialogues import judge_dialogues
from reproalign.mmpo.best_of_n_rules import (
    GOLD,
    PROXY,
    Judged,
    Pool,
    policy_rules,
    reward_models,
    sampling_backend,
)


def best_of_n_run(config: BestOfNConfig, invocation: Invocation) -> None:
    """Sample candidates, score them, and write the best of the first n for each n.

    ``prompts`` have one turn and one temperature. ``questions`` are MT-Bench's, as the authors ran it: two turns, a
    temperature by category, the mean of the rewards after each turn, and FastChat's answer files
    (:mod:`reproalign.mmpo.best_of_n_dialogues`). ``candidates.jsonl`` grows as it is sampled, and an interrupted run
    goes on where it stopped.
    """
    counts = _counts(config)
    _check(config)
    models = reward_models(config)
    with Run.open(invocation) as run:
        for judged in models:
            name = "reward" if judged.key == PROXY else judged.key
            used_weights(run, name, judged.model.name, judged.model.revision)
        pool = (
            judge_dialogues(config, counts, models, run) if config.questions else _prompts(config, counts, models, run)
        )
        _report(counts, pool, run)


def _prompts(config: BestOfNConfig, counts: Sequence[int], models: Sequence[Judged], run: Run) -> Pool:
    """Sample and score responses to prompts of one turn."""
    assert config.prompts is not None
    prompts = read_prompts(config.prompts)[: config.max_prompts]
    run.add_fingerprint("data", "prompts", sha256_json(prompts), path=config.prompts, rows=len(prompts))
    model, rules = policy_rules(config, max(counts))
    backend = sampling_backend(config, model, run)
    stop = replace(rules, stop=None) if config.rendering == "released" else rules
    candidates = sample_responses(
        prompts,
        run.dir / "candidates.jsonl",
        lambda: SAMPLERS[backend](model, stop),
        seed=config.seed,
        at_once=VLLM_CHUNK if backend == "vllm" else 1,
    )
    run.keep()
    rows = [Sampled(*row) for row in zip(range(len(prompts)), prompts, candidates, strict=True)]
    rewards = {}
    for judged in models:
        path = run.dir / judged.file
        scored = score_responses(rows, judged.model, judged.rules, path, batch_size=config.batch_size, key=judged.key)
        rewards[judged.key] = np.asarray([row.scores for row in scored], dtype=np.float64)

    def write(n: int, selected: NDArray[np.int64]) -> None:
        chosen = zip(prompts, candidates, rewards[PROXY], selected.tolist(), strict=True)
        name = SELECTED if len(counts) == 1 else f"selected-best-of-{n}.jsonl"
        write_rows(
            run.dir / name,
            (
                {"prompt": prompt, "response": responses[index], "reward": float(scores[index]), "index": index}
                for prompt, responses, scores, index in chosen
            ),
        )

    return Pool(rewards, candidates, write)


def _report(counts: Sequence[int], pool: Pool, run: Run) -> None:
    """Write the selections, record mean rewards, and print them with the number of prompts whose candidates agree."""
    proxy, gold = pool.rewards[PROXY], pool.rewards.get(GOLD)
    table = Table("best of", "mean reward", *(["mean gold reward"] if gold is not None else []), header_style="bold")
    metrics: dict[str, Any] = {}
    for n in sizes(counts[0]) if len(counts) == 1 else counts:
        result = best_of_n(proxy, n, gold)
        metrics[f"best_of_{n}"] = {"mean_proxy": result.mean_proxy, "mean_gold": result.mean_gold}
        table.add_row(str(n), f"{result.mean_proxy:.4f}", *([f"{result.mean_gold:.4f}"] if gold is not None else []))
        if n in counts:
            pool.write(n, result.selected)
    most = max(counts)
    same = sum(all(one == own[0] for one in own[:most]) for own in pool.candidates)
    run.set_metrics({**metrics, "prompts": len(proxy), "identical_candidates": same})
    console = result_console()
    console.print(table)
    console.print(f"{same} of {len(proxy)} prompts have {most} equal candidates: no selection can change these")
    console.print(f"candidates and selection: {run.dir}")


def _counts(config: BestOfNConfig) -> list[int]:
    """Return the values of n, in ascending order.

    Raises:
        UserError: for anything but whole numbers.
    """
    given = config.n if isinstance(config.n, list) else [config.n]
    if not given or any(isinstance(n, bool) or not isinstance(n, int) for n in given):
        raise UserError(f"n={config.n} must be a whole number, or a list of such, as n=[16,64,256]")
    return sorted(set(given))


def _check(config: BestOfNConfig) -> None:
    if (config.prompts is None) == (config.questions is None):
        what = "neither is" if config.prompts is None else "both are"
        raise UserError(f"prompts (one turn) or questions (MT-Bench's, two turns) is needed, and {what} given")
    only = {"temperature": "prompts"} if config.questions else {"candidates": "questions", "temperatures": "questions"}
    for key, owner in only.items():
        if getattr(config, key) not in (None, {}):
            raise UserError(f"{key} is for {owner}; leave it out")
    if config.candidates and config.policy.name:
        raise UserError("candidates is given and so is policy.name, which would not be asked; leave one of them out")
    if not config.candidates and not config.policy.name:
        raise UserError("policy.name is not set; name the model to sample from" + _or_candidates(config))


def _or_candidates(config: BestOfNConfig) -> str:
    return ", or give its answers as candidates=FILE" if config.questions else ""
