"""``mmpo best-of-n``: the paper's use of its reward models. Sample from a policy, score, keep the best of n."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from rich.table import Table

from reproalign.common.config import ModelConfig
from reproalign.common.data.collate import pad_rows
from reproalign.common.data.prepare import check_tokenizer
from reproalign.common.data.records import Message
from reproalign.common.data.templates import render
from reproalign.common.errors import UserError
from reproalign.common.files import write_text
from reproalign.common.generation.best_of_n import best_of_n, sizes
from reproalign.common.generation.samplers import transformers_sampler
from reproalign.common.generation.sampling import SamplingRules, read_prompts, sample_responses
from reproalign.common.invocation import Invocation
from reproalign.common.models.load import load_reward_model, load_tokenizer
from reproalign.common.records import Run
from reproalign.mmpo.config import BestOfNConfig


def best_of_n_run(config: BestOfNConfig, invocation: Invocation) -> None:
    """Sample n candidates per prompt, score them, and write the best for n = 1, 2, 4, …

    ``candidates.jsonl`` grows prompt by prompt, and an interrupted run goes on where it stopped; every prompt has a
    seed of its own, so that the result does not depend on interruptions. ``selected.jsonl`` holds the best of n.
    """
    rules = SamplingRules(config.n, config.max_new_tokens, config.temperature, config.top_p, config.batch_size)
    rules.check()
    if not config.temperature > 0:
        raise UserError(
            f"temperature={config.temperature} must be positive; candidates of one prompt would be the same"
        )
    with Run.open(invocation) as run:
        prompts = read_prompts(config.prompts)[: config.max_prompts]
        candidates = sample_responses(
            prompts,
            run.dir / "candidates.jsonl",
            lambda: transformers_sampler(config.policy, rules),
            seed=config.seed,
        )
        proxy = _score(config, config.reward, prompts, candidates)
        gold_config = None if config.gold is None else ModelConfig(name=config.gold, dtype=config.reward.dtype)
        gold = None if gold_config is None else _score(config, gold_config, prompts, candidates)
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
        rows = [
            {"prompt": prompt, "response": responses[index], "reward": float(scores[index]), "index": int(index)}
            for prompt, responses, scores, index in zip(prompts, candidates, proxy, result.selected, strict=True)
        ]
        write_text(run.dir / "selected.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        run.set_metrics(metrics)
        Console().print(table)
        Console().print(f"candidates and selection: {run.dir}", highlight=False)


@torch.no_grad()
def _score(
    config: BestOfNConfig, reward: ModelConfig, prompts: list[list[Message]], candidates: list[list[str]]
) -> NDArray[np.float64]:
    """Return the rewards of all candidates, (prompts, n)."""
    tokenizer = load_tokenizer(reward)
    check_tokenizer(tokenizer, chat_template=reward.chat_template)
    model: Any = load_reward_model(reward, tokenizer)
    model.to(PartialState().device).eval()
    texts = [
        render(tokenizer, [*prompt, {"role": "assistant", "content": response}])
        for prompt, responses in zip(prompts, candidates, strict=True)
        for response in responses
    ]
    rewards: list[float] = []
    pad = int(tokenizer.pad_token_id)  # type: ignore[arg-type]
    for start in track(range(0, len(texts), config.batch_size), description="scoring"):
        part = texts[start : start + config.batch_size]
        rows = [list(ids)[-config.max_length :] for ids in tokenizer(part)["input_ids"]]
        output = model(
            input_ids=pad_rows(rows, pad).to(model.device),
            attention_mask=pad_rows([[1] * len(row) for row in rows], 0).to(model.device),
        )
        rewards += output.logits.squeeze(-1).float().tolist()
    return np.asarray(rewards).reshape(len(prompts), -1)
