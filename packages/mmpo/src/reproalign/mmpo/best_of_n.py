"""``mmpo best-of-n``: the paper's use of its reward models. Sample from a policy, score, keep the best of n."""

from __future__ import annotations

import numpy as np
from rich.console import Console
from rich.table import Table

from reproalign.common.config import ModelConfig
from reproalign.common.errors import UserError
from reproalign.common.generation.best_of_n import best_of_n, sizes
from reproalign.common.generation.samplers import transformers_sampler
from reproalign.common.generation.samples import SCORED, SELECTED, Sampled, write_rows
from reproalign.common.generation.sampling import SamplingRules, read_prompts, sample_responses
from reproalign.common.invocation import Invocation
from reproalign.common.models.kind import check_reward_model
from reproalign.common.records import Run
from reproalign.common.reward.rules import RewardRules, scoring_rules
from reproalign.common.verbs.score import score_responses
from reproalign.mmpo.config import BestOfNConfig


def best_of_n_run(config: BestOfNConfig, invocation: Invocation) -> None:
    """Sample n candidates per prompt, score them, and write the best for n = 1, 2, 4, …

    ``candidates.jsonl`` grows prompt by prompt, and an interrupted run goes on where it stopped; every prompt has a
    seed of its own, so that the result does not depend on interruptions. ``scored.jsonl`` holds their rewards, by a
    model that reads them as it was trained to; ``selected.jsonl`` the best of n.
    """
    sampling = SamplingRules(config.n, config.max_new_tokens, config.temperature, config.top_p, config.batch_size)
    sampling.check()
    if not config.temperature > 0:
        raise UserError(
            f"temperature={config.temperature} must be positive; candidates of one prompt would be the same"
        )
    models = {"reward.name": config.reward}
    if config.gold is not None:
        models["gold"] = ModelConfig(name=config.gold, dtype=config.reward.dtype)
    rules = {key: _rules(model, config.max_length, key) for key, model in models.items()}
    with Run.open(invocation) as run:
        prompts = read_prompts(config.prompts)[: config.max_prompts]
        candidates = sample_responses(
            prompts,
            run.dir / "candidates.jsonl",
            lambda: transformers_sampler(config.policy, sampling),
            seed=config.seed,
        )
        rows = [Sampled(*row) for row in zip(range(len(prompts)), prompts, candidates, strict=True)]
        rewards = {}
        for key, name in zip(models, (SCORED, f"gold-{SCORED}"), strict=False):
            scored = score_responses(
                rows, models[key], rules[key], run.dir / name, batch_size=config.batch_size, key=key
            )
            rewards[key] = np.asarray([row.scores for row in scored])
        proxy, gold = rewards["reward.name"], rewards.get("gold")
        metrics = {}
        table = Table(
            "best of", "mean reward", *(["mean gold reward"] if gold is not None else []), header_style="bold"
        )
        for n in sizes(config.n):
            result = best_of_n(proxy, n, gold)
            metrics[f"best_of_{n}"] = {"mean_proxy": result.mean_proxy, "mean_gold": result.mean_gold}
            table.add_row(
                str(n), f"{result.mean_proxy:.4f}", *([f"{result.mean_gold:.4f}"] if gold is not None else [])
            )
        selected = [
            {"prompt": prompt, "response": responses[index], "reward": float(scores[index]), "index": int(index)}
            for prompt, responses, scores, index in zip(prompts, candidates, proxy, result.selected, strict=True)
        ]
        write_rows(run.dir / SELECTED, selected)
        run.set_metrics(metrics)
        Console().print(table)
        Console().print(f"candidates and selection: {run.dir}", highlight=False)


def _rules(model: ModelConfig, max_length: int | None, key: str) -> RewardRules:
    """Return how a reward model reads, before anything is sampled for it."""
    check_reward_model(model, key)
    return scoring_rules(model, {} if max_length is None else {"max_length": max_length}, key)
